"""Cosignatures and quorums: published examples hold, and no byte of a cosignature may change."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_client import (
    Checkpoint,
    CheckpointError,
    KeyFileError,
    Note,
    Quorum,
    QuorumError,
    Signer,
    Verifier,
    WitnessSigner,
    WitnessVerifier,
)

from .conftest import ORIGIN

# The example of c2sp.org/tlog-cosignature, which comes without keys; its text names the time.
C2SP_NOTE = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501 - as published

# A checkpoint of a public log in May 2026 with the cosignatures of four public witnesses, and the key of one of them
PUBLIC_NOTE = """\
arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— transparency.dev/DEV:witness-little-garden 2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
— witness1.smartit.nu/witness1 pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
— witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
"""  # noqa: E501 - as published
PUBLIC_LOG_KEY = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
PUBLIC_WITNESS_KEY = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"

HEAD = Checkpoint(origin=ORIGIN, size=42, root=bytes(range(32)))
LOG = Signer.generate(ORIGIN)
NOTE = LOG.sign(HEAD)
WITNESSES = [WitnessSigner.generate(f"witness.example/w{number}") for number in range(3)]
VERIFIERS = tuple(witness.verifier for witness in WITNESSES)
TIME_S = 1_790_000_000


def cosigned(*signers: WitnessSigner, text: str = HEAD.format(), note: str = NOTE) -> str:
    return note + "".join(signer.cosign(text, TIME_S).line for signer in signers)


def test_the_example_of_cosignatures_parses() -> None:
    line = Note.parse(C2SP_NOTE).signatures[1]
    assert line.key_name == "witness.example.com/w1"
    assert len(line.signature) == 72
    assert int.from_bytes(line.signature[:8], "big") == 1679315147


def test_a_cosignature_of_a_public_witness_verifies() -> None:
    witness = WitnessVerifier.parse(PUBLIC_WITNESS_KEY)
    assert witness.verifier_key == PUBLIC_WITNESS_KEY
    found = witness.find(Note.parse(PUBLIC_NOTE))
    assert found
    assert found.time_s == 0x6A122120
    assert found.line in PUBLIC_NOTE.splitlines(keepends=True)
    with pytest.raises(CheckpointError, match=r"remora\.n621\.de does not fit"):
        witness.find(Note.parse(PUBLIC_NOTE.replace("1432088532", "1432088533")))


def test_a_log_opens_a_note_that_witnesses_have_cosigned() -> None:
    assert Verifier.parse(PUBLIC_LOG_KEY).open(PUBLIC_NOTE).size == 1_432_088_532
    assert LOG.verifier.open(cosigned(*WITNESSES)) == HEAD


def test_what_is_cosigned_is_found() -> None:
    found = VERIFIERS[0].find(Note.parse(cosigned(WITNESSES[0])))
    assert found == WITNESSES[0].cosign(HEAD.format(), TIME_S)
    assert VERIFIERS[1].find(Note.parse(cosigned(WITNESSES[0]))) is None


def test_of_several_cosignatures_by_one_witness_the_newest_is_found() -> None:
    times = [7, 9, 8]
    note = NOTE + "".join(WITNESSES[0].cosign(HEAD.format(), time_s).line for time_s in times)
    found = VERIFIERS[0].find(Note.parse(note))
    assert found
    assert found.time_s == 9


def test_a_cosignature_covers_extension_lines() -> None:
    text = HEAD.format() + "extension\n"
    note = LOG.sign_text(text) + WITNESSES[0].cosign(text, TIME_S).line
    assert VERIFIERS[0].find(Note.parse(note))
    with pytest.raises(CheckpointError, match="does not fit"):
        VERIFIERS[0].find(Note.parse(note.replace("extension", "extenuating")))


@given(st.data())
@settings(max_examples=300)
def test_a_cosignature_with_any_byte_changed_does_not_count(data: st.DataObject) -> None:
    note = cosigned(WITNESSES[0])
    raw = bytearray(note.encode())
    position = data.draw(st.integers(len(NOTE.encode()), len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"."):
        Quorum(witnesses=VERIFIERS[:1], count=1).check(Note.parse(raw.decode()))


@pytest.mark.parametrize("position", range(72))
def test_a_cosignature_with_any_byte_of_it_changed_does_not_fit(position: int) -> None:
    note = Note.parse(cosigned(WITNESSES[0]))
    line = note.signatures[1]
    changed = bytearray(line.signature)
    changed[position] ^= 1
    forged = Note(
        text=note.text, signatures=(type(line)(key_name=line.key_name, key_id=line.key_id, signature=bytes(changed)),)
    )
    with pytest.raises(CheckpointError, match=r"does not fit|names no time"):
        VERIFIERS[0].find(forged)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 71, 73])
def test_a_cosignature_has_one_length(length: int) -> None:
    line = Note.parse(cosigned(WITNESSES[0])).signatures[1]
    cut = (line.signature + bytes(8))[:length] or b""
    note = Note(text=HEAD.format(), signatures=(type(line)(key_name=line.key_name, key_id=line.key_id, signature=cut),))
    with pytest.raises(CheckpointError, match="8 and 64 bytes"):
        VERIFIERS[0].find(note)


@pytest.mark.parametrize("time_s", [0, -1, 2**63])
def test_a_cosignature_is_made_at_a_time(time_s: int) -> None:
    with pytest.raises(ValueError, match="made at a time"):
        WITNESSES[0].cosign(HEAD.format(), time_s)


def test_a_log_key_is_no_witness_key_and_the_other_way_round() -> None:
    with pytest.raises(KeyFileError, match="a witness's key is of the Ed25519 type 0x04"):
        WitnessVerifier.parse(LOG.verifier_key)
    with pytest.raises(KeyFileError, match="a log's key is of the Ed25519 type 0x01"):
        Verifier.parse(WITNESSES[0].verifier_key)
    same = Signer(name=WITNESSES[0].name, key=WITNESSES[0].key)
    assert same.verifier.key_id != VERIFIERS[0].key_id
    with pytest.raises(CheckpointError, match="0 of 1"):
        Quorum(witnesses=VERIFIERS[:1], count=1).check(Note.parse(same.sign_text(HEAD.format())))


@pytest.mark.parametrize(
    "key", ["", "remora.n621.de", PUBLIC_WITNESS_KEY[:-1], PUBLIC_WITNESS_KEY.replace("da77ade7", "da77ade8")]
)
def test_malformed_witness_keys_are_refused(key: str) -> None:
    with pytest.raises(KeyFileError):
        WitnessVerifier.parse(key)


def test_a_witness_key_file_is_private_and_read_as_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "witness.key"
    WITNESSES[0].save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert WitnessSigner.load(path).verifier_key == WITNESSES[0].verifier_key
    with pytest.raises(KeyFileError, match="holds no signing key"):
        Signer.load(path)
    with pytest.raises(FileExistsError):
        WITNESSES[1].save(path)


def test_a_quorum_counts_distinct_witnesses() -> None:
    quorum = Quorum(witnesses=VERIFIERS, count=2)
    assert [witness for witness, _ in quorum.check(Note.parse(cosigned(WITNESSES[2], WITNESSES[0])))] == [
        VERIFIERS[0],
        VERIFIERS[2],
    ]
    for signers in ([], [WITNESSES[1]], [WITNESSES[1], WITNESSES[1]], [WITNESSES[1], WitnessSigner.generate("other")]):
        with pytest.raises(CheckpointError, match="of 3 witnesses cosigned"):
            quorum.check(Note.parse(cosigned(*signers)))


def test_a_cosignature_that_does_not_fit_is_not_made_good_by_others() -> None:
    other = Checkpoint(origin=ORIGIN, size=43, root=HEAD.root).format()
    note = cosigned(*WITNESSES[:2]) + WITNESSES[2].cosign(other, TIME_S).line
    with pytest.raises(CheckpointError, match="does not fit"):
        Quorum(witnesses=VERIFIERS, count=2).check(Note.parse(note))
    assert len(Quorum(witnesses=VERIFIERS[:2], count=2).check(Note.parse(note))) == 2


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_quorum_can_be_met(count: int) -> None:
    with pytest.raises(QuorumError, match="cannot be"):
        Quorum(witnesses=VERIFIERS, count=count)


def test_one_key_under_two_names_is_one_witness() -> None:
    alias = WitnessVerifier(name="witness.example/alias", key=VERIFIERS[0].key)
    with pytest.raises(QuorumError, match="one key"):
        Quorum(witnesses=(VERIFIERS[0], alias), count=1)


def test_a_majority_is_more_than_half() -> None:
    assert [Quorum.majority(VERIFIERS[:number]).count for number in (1, 2, 3)] == [1, 2, 2]

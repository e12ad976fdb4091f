"""Checkpoints, signed notes and their keys: published examples verify, and nothing but the one spelling is read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ledger_client import Checkpoint, CheckpointError, KeyFileError, Note, Signer, Verifier

from .conftest import ORIGIN

# golang.org/x/mod/sumdb/note, the package documentation from which c2sp.org/signed-note grew
NEUMANN_SIGNING_KEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NEUMANN_NOTE = (
    f"{NEUMANN_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6"
    "RyyBwJnAM=\n"
)

# A checkpoint of the test log of github.com/transparency-dev/tessera, as kept by github.com/warpfork/spicytool
TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
TESSERA_SIGNING_KEY = "PRIVATE+KEY+example.com/log/testdata+33d7b496+AeymY/SZAX0jZcJ8enZ5FY1Dz+wTML2yWSkK+9DSF3eg"
TESSERA_NOTE = """\
example.com/log/testdata
100270
GRV1O0dCqmjjPvYi7CtOT79zb/fPwLNsMFWsynwU8Ac=

— example.com/log/testdata M9e0lkcvy5bAe7rrC8tCyAP+my+CLzswA91zOpBNWVU7qCojkUOHnfdQzDImoYeYH8G8PJSwOqsx0RkSa261OmKVwwM=
"""

# c2sp.org/tlog-checkpoint, whose example comes without a key
C2SP_NOTE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)

HEAD = Checkpoint(origin=ORIGIN, size=42, root=bytes(range(32)))


def test_the_example_of_signed_notes_verifies_and_is_signed_alike() -> None:
    note = Note.parse(NEUMANN_NOTE)
    assert note.text == NEUMANN_TEXT
    Verifier.parse(NEUMANN_KEY).verify(note)
    signer = Signer.parse(NEUMANN_SIGNING_KEY)
    assert signer.verifier_key == NEUMANN_KEY
    assert signer.sign_text(NEUMANN_TEXT) == NEUMANN_NOTE


def test_the_checkpoint_of_another_log_software_verifies_and_is_signed_alike() -> None:
    checkpoint = Verifier.parse(TESSERA_KEY).open(TESSERA_NOTE)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/log/testdata", 100_270)
    assert checkpoint.root.hex() == "1915753b4742aa68e33ef622ec2b4e4fbf736ff7cfc0b36c3055acca7c14f007"
    assert Signer.parse(TESSERA_SIGNING_KEY).sign(checkpoint) == TESSERA_NOTE


def test_the_example_of_checkpoints_parses() -> None:
    note = Note.parse(C2SP_NOTE)
    assert Checkpoint.parse(note.text).size == 20_852_163
    assert [line.key_name for line in note.signatures] == ["example.com/behind-the-sofa"]
    assert note.signatures[0].key_id.hex() == "033de0ae"


def test_what_is_signed_opens(signer: Signer, verifier: Verifier) -> None:
    assert verifier.open(signer.sign(HEAD)) == HEAD
    assert Verifier.parse(signer.verifier_key).open(signer.sign(HEAD)) == HEAD


def test_another_key_of_the_same_name_does_not_open(signer: Signer) -> None:
    with pytest.raises(CheckpointError, match="no signature by"):
        Signer.generate(ORIGIN).verifier.open(signer.sign(HEAD))


def test_a_key_signs_and_opens_for_its_own_log_alone(signer: Signer, verifier: Verifier) -> None:
    other = Checkpoint(origin="example.com/other", size=1, root=bytes(32))
    with pytest.raises(CheckpointError, match="does not sign for"):
        signer.sign(other)
    with pytest.raises(CheckpointError, match=r"is of 'example\.com/other'"):
        verifier.open(signer.sign_text(other.format()))


def test_signatures_of_unknown_keys_are_ignored(signer: Signer, verifier: Verifier) -> None:
    note = signer.sign(HEAD)
    witness = Signer.generate("witness.example").sign_text(HEAD.format()).split("\n\n")[1]
    namesake = Signer.generate(ORIGIN).sign(HEAD).split("\n\n")[1]
    assert verifier.open(note + witness + namesake) == HEAD
    text, own = note.split("\n\n")
    assert verifier.open(f"{text}\n\n{witness}{namesake}{own}") == HEAD


def test_every_signature_by_the_key_must_hold(signer: Signer, verifier: Verifier) -> None:
    other = signer.sign(Checkpoint(origin=ORIGIN, size=43, root=HEAD.root)).split("\n\n")[1]
    with pytest.raises(CheckpointError, match="does not fit"):
        verifier.open(signer.sign(HEAD) + other)


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_parse_undoes_format(origin: str, size: int, root: bytes) -> None:
    checkpoint = Checkpoint(origin=origin, size=size, root=root)
    assert Checkpoint.parse(checkpoint.format()) == checkpoint


ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    "size",
    [
        *["+42", "-42", "007", "00", "", " 42", "42 ", "4 2", "4_2", "42.0", "0x2a", "4e1", "４２", "٤٢", "४२", "⁴²"],
        *["42\r", "42\t", "9223372036854775808", "1" * 5000, "NaN"],
    ],
)
def test_a_size_has_one_spelling(size: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse(f"{ORIGIN}\n{size}\n{ROOT}\n")


@pytest.mark.parametrize(
    "root",
    [
        *[
            "",
            ROOT[:-1],
            ROOT + "=",
            ROOT[:-2] + "9=",
            ROOT[:-4],
            ROOT + "AAAA",
            " " + ROOT,
            ROOT + " ",
            ROOT[:-1] + "é",
        ],
        *[ROOT.replace("=", ""), ROOT[:20] + "\r" + ROOT[20:], ROOT.replace("A", "-"), "/" * 43 + "="],
    ],
)
def test_a_root_has_one_spelling(root: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse(f"{ORIGIN}\n42\n{root}\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n42\n" + ROOT + "\n",
        f"{ORIGIN}\n42\n{ROOT}",
        f"{ORIGIN}\n42\n{ROOT}\nextension\n",
        f"{ORIGIN}\n42\n{ROOT}\n\n",
        f"\n{ORIGIN}\n42\n{ROOT}\n",
        f"{ORIGIN}\r\n42\r\n{ROOT}\r\n",
        f"{ORIGIN}\n42\n",
        f"a\0b\n42\n{ROOT}\n",
        f"a\ud800b\n42\n{ROOT}\n",
    ],
)
def test_a_checkpoint_is_three_lines(text: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse(text)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=50)
def test_any_other_text_is_refused_as_a_checkpoint_error(text: str) -> None:
    with pytest.raises(CheckpointError):
        Verifier.parse(TESSERA_KEY).open(text)
    with pytest.raises(CheckpointError):
        Verifier.parse(TESSERA_KEY).open(TESSERA_NOTE + text + "\n")


@given(st.integers(0, len(TESSERA_NOTE.encode()) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_a_note_with_any_byte_changed_does_not_open(position: int, mask: int) -> None:
    raw = bytearray(TESSERA_NOTE.encode())
    raw[position] ^= mask
    try:
        note = raw.decode()
    except UnicodeDecodeError:
        assume(False)
    with pytest.raises(CheckpointError):
        Verifier.parse(TESSERA_KEY).open(note)


SIGNATURE = NEUMANN_NOTE.rpartition(" ")[2].strip()


@pytest.mark.parametrize(
    "note",
    [
        NEUMANN_NOTE.removesuffix("\n"),
        NEUMANN_NOTE + "\n",
        NEUMANN_NOTE.replace("\n\n", "\n"),
        NEUMANN_NOTE.replace("— ", "- "),
        NEUMANN_NOTE.replace("— ", "—  "),
        NEUMANN_NOTE.replace("— ", "—\u00a0"),
        NEUMANN_NOTE.replace("— Peter", "— Peter+"),
        NEUMANN_NOTE.replace("problem,", "problem,\t"),
        NEUMANN_NOTE.replace("problem,", "problem,\udcff"),
        NEUMANN_NOTE.replace(SIGNATURE, SIGNATURE + " "),
        NEUMANN_NOTE.replace(SIGNATURE, SIGNATURE[:-1]),
        NEUMANN_NOTE.replace(SIGNATURE, "x08goA=="),
        NEUMANN_NOTE.replace(SIGNATURE, ""),
        NEUMANN_NOTE + "— other AAAA\n",
        NEUMANN_NOTE + "x" * 70_000 + "\n",
    ],
)
def test_malformed_notes_are_refused(note: str) -> None:
    with pytest.raises(CheckpointError):
        Verifier.parse(NEUMANN_KEY).verify(Note.parse(note))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "PeterNeumann",
        NEUMANN_KEY.replace("c74f20a3", "c74f20a4"),
        NEUMANN_KEY.replace("c74f20a3", "C74F20A3"),
        NEUMANN_KEY.replace("PeterNeumann", "PeterNewmann"),
        NEUMANN_KEY.replace("PeterNeumann", "Peter Neumann"),
        NEUMANN_KEY.replace("+ARpc", "+Acpc"),
        NEUMANN_KEY.replace("+ARpc", "+BRpc"),
        NEUMANN_KEY[:-4],
        NEUMANN_KEY + "=",
        NEUMANN_KEY + "\n",
        " " + NEUMANN_KEY,
        NEUMANN_KEY.replace("ARpc2", "é"),
    ],
)
def test_malformed_verifier_keys_are_refused(key: str) -> None:
    with pytest.raises(KeyFileError):
        Verifier.parse(key)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb", "a\ud800b", "x" * 256])
def test_key_names_have_no_spaces_and_plus_signs(name: str) -> None:
    with pytest.raises(KeyFileError):
        Signer.generate(name)


def test_a_key_file_is_readable_by_its_owner_alone(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "log.key"
    signer.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Signer.load(path).verifier_key == signer.verifier_key
    with pytest.raises(FileExistsError):
        Signer.generate(ORIGIN).save(path)
    assert Signer.load(path).verifier_key == signer.verifier_key


def test_a_key_file_that_is_missing_is_a_key_file_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"there is no signing key at .*none"):
        Signer.load(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, signer: Signer, mode: int) -> None:
    path = tmp_path / "log.key"
    signer.save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        Signer.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        NEUMANN_KEY.encode(),
        NEUMANN_SIGNING_KEY.replace("c74f20a3", "c74f20a4").encode(),
        NEUMANN_SIGNING_KEY[:-4].encode(),
        NEUMANN_SIGNING_KEY.encode() + b"\n\n",
    ],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="holds no signing key") as caught:
        Signer.load(path)
    assert "AYEKFALV" not in str(caught.value)


def test_a_signer_does_not_print_its_key() -> None:
    assert repr(Signer.parse(NEUMANN_SIGNING_KEY)) == "Signer(name='PeterNeumann')"


@pytest.mark.parametrize(("size", "root"), [(-1, bytes(32)), (2**63, bytes(32)), (1, bytes(31))])
def test_a_checkpoint_is_checked_at_birth(size: int, root: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint(origin=ORIGIN, size=size, root=root)

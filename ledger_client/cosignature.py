"""Cosignatures (c2sp.org/tlog-cosignature, cosignature/v1 with Ed25519): a witness's word that a log only grew."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger_client.checkpoint import CheckpointError, Note, NoteSignature
from ledger_client.forms import MAX_COUNT
from ledger_client.keys import (
    COSIGNATURE_KEY,
    check_key_name,
    format_signing_key,
    format_verifier_key,
    key_id,
    load_key,
    parse_signing_key,
    parse_verifier_key,
    save_key,
)

_TIME_BYTES = 8
_SIGNATURE_BYTES = 64


class QuorumError(ValueError):
    """A quorum that no set of witnesses can meet as it is stated."""


@dataclass(frozen=True, kw_only=True)
class Cosignature:
    """A cosignature that fits its checkpoint. time_s: when it was made, Unix seconds. line: with its newline."""

    time_s: int
    line: str


@dataclass(frozen=True, kw_only=True)
class WitnessVerifier:
    """The public half of a witness's key, and the witness's name."""

    name: str
    key: Ed25519PublicKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature line."""
        return key_id(COSIGNATURE_KEY, self.name, self.key)

    @property
    def identity(self) -> str:
        """The name and the key id as `name+hex`: which witness, and by which of its keys. At most 264 characters."""
        return f"{self.name}+{self.key_id.hex()}"

    @property
    def verifier_key(self) -> str:
        """The key as `name+hex+base64`, the form to publish."""
        return format_verifier_key(COSIGNATURE_KEY, self.name, self.key)

    @classmethod
    def parse(cls, verifier_key: str) -> WitnessVerifier:
        """Read `name+hex+base64`. Raises KeyFileError when it is malformed, or the key of a log."""
        name, key = parse_verifier_key(COSIGNATURE_KEY, verifier_key)
        return cls(name=name, key=key)

    def find(self, note: Note) -> Cosignature | None:
        """Return this witness's newest cosignature under a note, or None where it gave none.

        Raises CheckpointError when a line says that it is by this witness and does not fit: a note that was tampered
        with is not to be believed in part.
        """
        lines = note.signatures_by(self.name, self.key_id)
        return max((self._checked(note.text, line) for line in lines), key=lambda found: found.time_s, default=None)

    def _checked(self, text: str, line: NoteSignature) -> Cosignature:
        if len(line.signature) != _TIME_BYTES + _SIGNATURE_BYTES:
            raise CheckpointError(f"a cosignature has 8 and 64 bytes; that by {self.name} has {len(line.signature)}")
        time_s = int.from_bytes(line.signature[:_TIME_BYTES], "big")
        if not 0 < time_s <= MAX_COUNT:
            raise CheckpointError(f"the cosignature by {self.name} names no time")
        try:
            self.key.verify(line.signature[_TIME_BYTES:], _message(text, time_s))
        except InvalidSignature as error:
            raise CheckpointError(f"the cosignature by {self.name} does not fit the checkpoint") from error
        return Cosignature(time_s=time_s, line=line.format())


@dataclass(frozen=True, kw_only=True)
class WitnessSigner:
    """The signing key of a witness. It is to sign as this witness alone: the message does not hold the name."""

    name: str
    key: Ed25519PrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)

    @classmethod
    def generate(cls, name: str) -> WitnessSigner:
        """Make a new key."""
        return cls(name=name, key=Ed25519PrivateKey.generate())

    @property
    def verifier(self) -> WitnessVerifier:
        """The public half."""
        return WitnessVerifier(name=self.name, key=self.key.public_key())

    @property
    def verifier_key(self) -> str:
        """The public half as `name+hex+base64`."""
        return self.verifier.verifier_key

    def cosign(self, text: str, time_s: int) -> Cosignature:
        """Cosign a checkpoint's text, extension lines included. Whether that is right is decided in `witness.py`.

        time_s: now, Unix seconds. Raises ValueError when it is not between 1 and 2^63 − 1.
        """
        if not 0 < time_s <= MAX_COUNT:
            raise ValueError(f"a cosignature is made at a time between 1 and 2^63 − 1, not at {time_s}")
        signature = time_s.to_bytes(_TIME_BYTES, "big") + self.key.sign(_message(text, time_s))
        line = NoteSignature(key_name=self.name, key_id=self.verifier.key_id, signature=signature)
        return Cosignature(time_s=time_s, line=line.format())

    @classmethod
    def parse(cls, signing_key: str) -> WitnessSigner:
        """Read `PRIVATE+KEY+name+hex+base64`. Raises KeyFileError when it is malformed, or the key of a log."""
        name, key = parse_signing_key(COSIGNATURE_KEY, signing_key)
        return cls(name=name, key=key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner may read. Raises FileExistsError rather than replace one."""
        save_key(path, format_signing_key(COSIGNATURE_KEY, self.name, self.key))

    @classmethod
    def load(cls, path: Path) -> WitnessSigner:
        """Read a key file that `save` wrote. Raises KeyFileError when others may read it too, or it holds no key."""
        return load_key(path, cls.parse)


@dataclass(frozen=True, kw_only=True)
class Quorum:
    """How many of which witnesses must have cosigned a checkpoint. Raises QuorumError at birth when none could.

    Witnesses are told apart by their public keys: one key under two names is one witness.
    """

    witnesses: tuple[WitnessVerifier, ...]
    count: int

    def __post_init__(self) -> None:
        if len({witness.key.public_bytes_raw() for witness in self.witnesses}) != len(self.witnesses):
            raise QuorumError("two of the witnesses have one key, so they are one witness")
        if not 1 <= self.count <= len(self.witnesses):
            raise QuorumError(f"a quorum of {len(self.witnesses)} witnesses cannot be {self.count}")

    @classmethod
    def majority(cls, witnesses: tuple[WitnessVerifier, ...]) -> Quorum:
        """Return the quorum of more than half, which no two disjoint sets of witnesses can meet."""
        return cls(witnesses=witnesses, count=len(witnesses) // 2 + 1)

    def check(self, note: Note) -> list[tuple[WitnessVerifier, Cosignature]]:
        """Return the witnesses that cosigned a note, and how. Raises CheckpointError when they are too few.

        A cosignature by one of these witnesses that does not fit is a CheckpointError too, however many others do.
        """
        found = [(witness, cosignature) for witness in self.witnesses if (cosignature := witness.find(note))]
        if len(found) < self.count:
            named = ", ".join(witness.name for witness, _ in found) or "none"
            raise CheckpointError(
                f"{len(found)} of {len(self.witnesses)} witnesses cosigned ({named}), and {self.count} are asked for"
            )
        return found


def _message(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()

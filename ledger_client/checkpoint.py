"""Checkpoints (c2sp.org/tlog-checkpoint) in signed notes (c2sp.org/signed-note), signed with Ed25519 alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger_client.forms import MAX_COUNT, from_base64, from_decimal, to_base64
from ledger_client.keys import (
    NOTE_KEY,
    check_key_name,
    format_signing_key,
    format_verifier_key,
    key_id,
    load_key,
    parse_signing_key,
    parse_verifier_key,
    save_key,
)
from ledger_client.merkle import HASH_BYTES

_MAX_NOTE_CHARACTERS = 65_536
_NO_TEXT = re.compile(r"[\x00-\x1f\ud800-\udfff]")  # control characters, and what UTF-8 cannot carry
_SIGNATURE = re.compile(r"— ([^\s+]+) (\S+)")


class CheckpointError(ValueError):
    """A checkpoint that is malformed, or that the expected key did not sign."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The head of a log. origin: its name, one line. size: its leaves. root: 32 bytes, the Merkle root over them."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or _NO_TEXT.search(self.origin):
            raise CheckpointError("the origin of a checkpoint is one line, not empty and without control characters")
        if not 0 <= self.size <= MAX_COUNT:
            raise CheckpointError(f"the size of a checkpoint is between 0 and 2^63 − 1; it is {self.size}")
        if len(self.root) != HASH_BYTES:
            raise CheckpointError(f"the root of a checkpoint has {HASH_BYTES} bytes, not {len(self.root)}")

    def format(self) -> str:
        """Return the text that is signed: three lines, each with its newline."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read what `format` writes. Raises CheckpointError on anything else, extension lines among it."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise CheckpointError("a checkpoint has exactly three lines: origin, size and root")
        try:
            return cls(origin=lines[0], size=from_decimal(lines[1]), root=from_base64(lines[2]))
        except ValueError as error:
            raise CheckpointError(f"malformed checkpoint: {error}") from error


@dataclass(frozen=True, kw_only=True)
class NoteSignature:
    """A signature line. key_name and key_id (4 bytes) say which key is said to have made the signature."""

    key_name: str
    key_id: bytes
    signature: bytes

    def format(self) -> str:
        """Return the line, with its newline."""
        return f"— {self.key_name} {to_base64(self.key_id + self.signature)}\n"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A text ending in a newline, and the signatures under it, none of them checked yet."""

    text: str
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, note: str) -> Note:
        """Take a signed note apart. Raises CheckpointError when it is malformed."""
        if len(note) > _MAX_NOTE_CHARACTERS:
            raise CheckpointError(f"a note may take {_MAX_NOTE_CHARACTERS} characters; this one takes {len(note)}")
        text, blank, signatures = note.rpartition("\n\n")
        if not blank or not signatures.endswith("\n") or _NO_TEXT.search(note.replace("\n", "")):
            raise CheckpointError("a note is lines of text, a blank line, and signature lines, each with its newline")
        return cls(text=text + "\n", signatures=tuple(map(_parse_signature, signatures[:-1].split("\n"))))

    def signatures_by(self, key_name: str, key_id: bytes) -> list[NoteSignature]:
        """Return the lines that say they are by a key."""
        return [line for line in self.signatures if (line.key_name, line.key_id) == (key_name, key_id)]


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """The public half of a log's key, and the name of the log: all that is needed to disbelieve it."""

    name: str
    key: Ed25519PublicKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)

    @cached_property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature line."""
        return key_id(NOTE_KEY, self.name, self.key)

    @property
    def verifier_key(self) -> str:
        """The key as `name+hex+base64`, the form to publish."""
        return format_verifier_key(NOTE_KEY, self.name, self.key)

    @classmethod
    def parse(cls, verifier_key: str) -> Verifier:
        """Read `name+hex+base64`. Raises KeyFileError when it is malformed or its parts contradict each other."""
        name, key = parse_verifier_key(NOTE_KEY, verifier_key)
        return cls(name=name, key=key)

    def signatures_of(self, note: Note) -> list[bytes]:
        """Return the signatures that say they are by this key. Other keys' are none of our business."""
        return [line.signature for line in note.signatures_by(self.name, self.key_id)]

    def verify(self, note: Note) -> None:
        """Raise CheckpointError unless this key signed the note, and every signature said to be by it is good."""
        signatures = self.signatures_of(note)
        if not signatures:
            raise CheckpointError(f"no signature by {self.name} with key id {self.key_id.hex()}")
        for signature in signatures:
            try:
                self.key.verify(signature, note.text.encode())
            except InvalidSignature as error:
                raise CheckpointError(f"the signature by {self.name} does not fit the checkpoint") from error

    def open(self, note: str) -> Checkpoint:
        """Return the checkpoint in a note that this key signed for its own log; else raise CheckpointError."""
        opened = Note.parse(note)
        self.verify(opened)
        checkpoint = Checkpoint.parse(opened.text)
        if checkpoint.origin != self.name:
            raise CheckpointError(f"the checkpoint is of {checkpoint.origin!r}, not of {self.name!r}")
        return checkpoint


@dataclass(frozen=True, kw_only=True)
class Signer:
    """The signing key of a log whose origin is `name`."""

    name: str
    key: Ed25519PrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_name(self.name)

    @classmethod
    def generate(cls, name: str) -> Signer:
        """Make a new key."""
        return cls(name=name, key=Ed25519PrivateKey.generate())

    @cached_property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(name=self.name, key=self.key.public_key())

    @property
    def verifier_key(self) -> str:
        """The public half as `name+hex+base64`."""
        return self.verifier.verifier_key

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the checkpoint as a signed note. Raises CheckpointError for a checkpoint of another log."""
        if checkpoint.origin != self.name:
            raise CheckpointError(f"the key of {self.name!r} does not sign for {checkpoint.origin!r}")
        return self.sign_text(checkpoint.format())

    def sign_text(self, text: str) -> str:
        """Return any text that ends in a newline as a signed note."""
        signature = NoteSignature(
            key_name=self.name, key_id=self.verifier.key_id, signature=self.key.sign(text.encode())
        )
        return f"{text}\n{signature.format()}"

    @classmethod
    def parse(cls, signing_key: str) -> Signer:
        """Read `PRIVATE+KEY+name+hex+base64`. Raises KeyFileError."""
        name, key = parse_signing_key(NOTE_KEY, signing_key)
        return cls(name=name, key=key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner may read. Raises FileExistsError rather than replace one."""
        save_key(path, format_signing_key(NOTE_KEY, self.name, self.key))

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read a key file that `save` wrote. Raises KeyFileError when others may read it too, or it holds no key."""
        return load_key(path, cls.parse)


def _parse_signature(line: str) -> NoteSignature:
    match = _SIGNATURE.fullmatch(line)
    if not match:
        raise CheckpointError("a signature line is an em dash, a key name and base64, with one space between them")
    try:
        raw = from_base64(match[2])
    except ValueError as error:
        raise CheckpointError(f"malformed signature by {match[1]!r}: {error}") from error
    if len(raw) <= 4:
        raise CheckpointError(f"the signature by {match[1]!r} is shorter than a key id and a signature")
    return NoteSignature(key_name=match[1], key_id=raw[:4], signature=raw[4:])

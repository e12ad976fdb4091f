"""Ed25519 keys in the text forms of signed notes (c2sp.org/signed-note), and the files that keep the secret ones.

A key is of one kind, the signature type of what it signs, and its id is made from that: the same 32 bytes as a log's
key and as a witness's are two keys, and neither is read where the other is wanted.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger_client.forms import from_base64, to_base64

NOTE_KEY = b"\x01"  # signs the text of a note as it is
COSIGNATURE_KEY = b"\x04"  # signs a checkpoint under a time: cosignature/v1

_KINDS = {NOTE_KEY: "a log's", COSIGNATURE_KEY: "a witness's"}
_NAME = re.compile(r"[^\s+\x00-\x1f\ud800-\udfff]{1,255}")
_VERIFIER_KEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+(\S+)")
_SIGNING_KEY = re.compile(r"PRIVATE\+KEY\+([^\s+]+)\+([0-9a-f]{8})\+(\S+)")

T = TypeVar("T")


class KeyFileError(ValueError):
    """A signing or verifier key that cannot be used. The message never holds key material."""


def check_key_name(name: str) -> None:
    """Raise KeyFileError unless the name may stand in a signature line."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"a key name is 1 to 255 characters without spaces and plus signs; it is {name!r}")


def key_id(kind: bytes, name: str, key: Ed25519PublicKey) -> bytes:
    """Return the four bytes that name a key in a signature line."""
    return hashlib.sha256(name.encode() + b"\n" + kind + key.public_bytes_raw()).digest()[:4]


def format_verifier_key(kind: bytes, name: str, key: Ed25519PublicKey) -> str:
    """Return the key as `name+hex+base64`, the form to publish."""
    return f"{name}+{key_id(kind, name, key).hex()}+{to_base64(kind + key.public_bytes_raw())}"


def parse_verifier_key(kind: bytes, text: str) -> tuple[str, Ed25519PublicKey]:
    """Read `name+hex+base64`. Raises KeyFileError when it is malformed or its parts contradict each other."""
    name, raw = _parse(kind, _VERIFIER_KEY, text, "a verifier key is name+hex+base64")
    key = Ed25519PublicKey.from_public_bytes(raw)
    if format_verifier_key(kind, name, key) != text:
        raise KeyFileError("the verifier key's id does not belong to its name and key")
    return name, key


def format_signing_key(kind: bytes, name: str, key: Ed25519PrivateKey) -> str:
    """Return the secret key as `PRIVATE+KEY+name+hex+base64`."""
    return (
        f"PRIVATE+KEY+{name}+{key_id(kind, name, key.public_key()).hex()}+{to_base64(kind + key.private_bytes_raw())}"
    )


def parse_signing_key(kind: bytes, text: str) -> tuple[str, Ed25519PrivateKey]:
    """Read `PRIVATE+KEY+name+hex+base64`. Raises KeyFileError."""
    name, raw = _parse(kind, _SIGNING_KEY, text, "a signing key is PRIVATE+KEY+name+hex+base64")
    key = Ed25519PrivateKey.from_private_bytes(raw)
    if format_signing_key(kind, name, key) != text:
        raise KeyFileError("the signing key's id does not belong to its name and key")
    return name, key


def save_key(path: Path, signing_key: str) -> None:
    """Write a key to a new file that only its owner may read. Raises FileExistsError rather than replace one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(signing_key + "\n")
        file.flush()
        os.fsync(descriptor)


def load_key(path: Path, parse: Callable[[str], T], what: str = "signing key") -> T:
    """Read a file that holds one key. Raises KeyFileError when others may read it too, or it holds no key.

    A file that is not there is a KeyFileError as well. what: the kind of key, for the message.
    """
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        raise KeyFileError(f"there is no {what} at {path}") from None
    with file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise KeyFileError(f"others may read the {what} {path} (mode {mode:04o}): chmod 600 {path}")
        try:
            return parse(file.read(4096).removesuffix("\n"))
        except ValueError as error:
            raise KeyFileError(f"{path} holds no {what}: {error}") from error


def _parse(kind: bytes, form: re.Pattern[str], text: str, expected: str) -> tuple[str, bytes]:
    """Return the name and the 32 bytes of a key in text form; its id is for the caller to compare."""
    match = form.fullmatch(text)
    if not match:
        raise KeyFileError(expected)
    try:
        raw = from_base64(match[3])
    except ValueError as error:
        raise KeyFileError(f"{expected}; the last part is not base64") from error
    if len(raw) != 33 or raw[:1] != kind:
        raise KeyFileError(f"{_KINDS[kind]} key is of the Ed25519 type 0x{kind.hex()}: that byte, then 32 bytes")
    check_key_name(match[1])
    return match[1], raw[1:]

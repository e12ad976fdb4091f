"""Logs for tests, as leaves in memory: whole trees, and the proofs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger_client import Checkpoint, Frontier, Signer, Submission, consistency_path, leaf_hash


def hashed(*entries: str) -> list[bytes]:
    return [leaf_hash(entry.encode()) for entry in entries]


@dataclass(frozen=True)
class Tree:
    """A log that signs whatever it is told to."""

    signer: Signer
    leaves: Sequence[bytes]

    def hash_at(self, level: int, number: int) -> bytes:
        frontier = Frontier()
        for leaf in self.leaves[number << level : (number + 1) << level]:
            frontier = frontier.append(leaf)
        return frontier.root()

    def checkpoint(self, size: int) -> Checkpoint:
        frontier = Frontier()
        for leaf in self.leaves[:size]:
            frontier = frontier.append(leaf)
        return Checkpoint(origin=self.signer.name, size=size, root=frontier.root())

    def note(self, size: int) -> str:
        return self.signer.sign(self.checkpoint(size))

    def proof(self, old_size: int, size: int) -> tuple[bytes, ...]:
        return tuple(consistency_path(old_size, size, self.hash_at))

    def submission(self, old_size: int, size: int) -> Submission:
        return Submission(old_size=old_size, proof=self.proof(old_size, size), note=self.note(size))

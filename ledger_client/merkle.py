"""The Merkle tree of RFC 6962 section 2.1 (RFC 9162 sections 2.1.1 to 2.1.4), as functions of hashes.

A node is named by level and index: the leaves are level 0, and node (level, index) covers the leaves from
index · 2^level up to (index + 1) · 2^level. Builders of proofs ask a `HashAt` for complete subtrees alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

HashAt: TypeAlias = Callable[[int, int], bytes]
"""(level, index) → the hash of that subtree, which is asked for only when all its leaves are in the tree."""


class ProofError(ValueError):
    """A proof that does not show what it is said to show."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash the bytes of an entry as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """What growing a tree needs of it: the largest complete subtrees that make it up, left to right.

    size: leaves so far. hashes: one a set bit of size, the highest bit first. Raises ValueError when they do not fit.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError(f"a frontier of size {self.size} cannot have {len(self.hashes)} hashes")
        if any(len(node) != HASH_BYTES for node in self.hashes):
            raise ValueError(f"a frontier is made of hashes of {HASH_BYTES} bytes")

    def completed_by(self, leaf: bytes) -> list[bytes]:
        """Return the hashes of the subtrees that one more leaf hash completes, one a level from level 0 up."""
        chain = [leaf]
        for left in self.hashes[::-1][: _trailing_ones(self.size)]:
            chain.append(node_hash(left, chain[-1]))
        return chain

    def append(self, leaf: bytes) -> Frontier:
        """Return the frontier of the tree with one more leaf hash."""
        kept = len(self.hashes) - _trailing_ones(self.size)
        return Frontier(size=self.size + 1, hashes=(*self.hashes[:kept], self.completed_by(leaf)[-1]))

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """Return the frontier of the tree with these leaf hashes behind its own."""
        tree = GrowingTree(self)
        for leaf in leaves:
            tree.append(leaf)
        return tree.frontier()

    def root(self) -> bytes:
        """Return the root of the whole tree."""
        return _fold(self.hashes) if self.hashes else EMPTY_ROOT

    def encode(self) -> bytes:
        """Return the hashes end to end; the size is not among them."""
        return b"".join(self.hashes)

    @classmethod
    def decode(cls, size: int, raw: bytes) -> Frontier:
        """Read what `encode` wrote for a tree of this size. Raises ValueError when the two do not fit."""
        hashes = tuple(raw[start : start + HASH_BYTES] for start in range(0, len(raw), HASH_BYTES))
        return cls(size=size, hashes=hashes)


class GrowingTree:
    """A frontier that grows in place, for whoever reads a whole log. start: what it grows from, else the empty tree."""

    def __init__(self, start: Frontier | None = None) -> None:
        self.size = start.size if start else 0
        self._hashes: list[bytes] = list(start.hashes) if start else []

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        hashes, size = self._hashes, self.size
        while size & 1:
            leaf = hashlib.sha256(b"\x01" + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree as it is."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT

    def frontier(self) -> Frontier:
        """Return the tree as it is, as a value."""
        return Frontier(size=self.size, hashes=tuple(self._hashes))


def frontier_at(size: int, hash_at: HashAt) -> Frontier:
    """Return the frontier that a tree had when it was of this size."""
    return Frontier(size=size, hashes=tuple(hash_at(*node) for node in _subtrees(0, size)))


def hashes_after(before: Frontier, leaves: Sequence[bytes]) -> HashAt:
    """Return the hashes of the tree that leaf hashes make behind a frontier, as far as they follow from the two.

    They do wherever the path of one of these leaves asks. Raises LookupError elsewhere.
    """
    known = dict(zip(_subtrees(0, before.size), before.hashes, strict=True))
    known |= {(0, index): leaf for index, leaf in enumerate(leaves, start=before.size)}

    def hash_at(level: int, index: int) -> bytes:
        node = (level, index)
        if node not in known:
            if level == 0:
                raise LookupError(f"leaf {index} is neither in the frontier nor behind it")
            known[node] = node_hash(hash_at(level - 1, 2 * index), hash_at(level - 1, 2 * index + 1))
        return known[node]

    return hash_at


def inclusion_path(index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """Return the siblings from the leaf's up to the root's child (RFC 9162 section 2.1.3.1). Needs 0 ≤ index < size."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    return subtree_path(0, index, size, hash_at)


def consistency_path(old_size: int, new_size: int, hash_at: HashAt) -> list[bytes]:
    """Return the proof that the tree of old_size is a prefix of that of new_size (RFC 9162 section 2.1.4.1).

    Empty when the old tree is empty or both are the same, where there is nothing to prove.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {new_size} leaves does not extend one of {old_size}")
    if old_size in {0, new_size}:
        return []
    level, index = _last_subtree(old_size)
    path = subtree_path(level, index, new_size, hash_at)
    # When that subtree is all of the old tree, the verifier holds its hash already: the old root.
    return path if index == 0 else [hash_at(level, index), *path]


def root_from_inclusion_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a leaf hash and its path lead to. Raises ProofError when the path cannot fit the tree."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    siblings = list(_siblings(index, size - 1))
    _check_path(path, len(siblings))
    root = leaf
    for (_, sibling), other in zip(siblings, path, strict=True):
        root = node_hash(other, root) if _is_left(sibling) else node_hash(root, other)
    return root


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Raise ProofError unless the leaf hash stands at index in the tree of that size and root."""
    if root_from_inclusion_path(leaf, index, size, path) != root:
        raise ProofError(f"the path from leaf {index} does not lead to the root of the tree of {size}")


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless the tree of old_size and old_root is a prefix of that of new_size and new_root."""
    if not 0 <= old_size <= new_size:
        raise ProofError(f"a tree of {new_size} leaves cannot extend one of {old_size}")
    if old_size in {0, new_size}:
        _check_path(path, 0)
        if old_size == 0 and old_root != EMPTY_ROOT:
            raise ProofError("the old tree is empty, but its root is not that of an empty tree")
        if old_size == new_size and old_root != new_root:
            raise ProofError(f"two trees of size {old_size} have different roots")
        return
    level, index = _last_subtree(old_size)
    siblings = list(_siblings(index, (new_size - 1) >> level))
    _check_path(path, len(siblings) + (index != 0))
    start, *rest = path if index else (old_root, *path)
    old = new = start
    for (_, sibling), other in zip(siblings, rest, strict=True):
        if _is_left(sibling):
            old, new = node_hash(other, old), node_hash(other, new)
        else:
            new = node_hash(new, other)
    if old != old_root:
        raise ProofError(f"the path does not lead to the old root, of size {old_size}")
    if new != new_root:
        raise ProofError(f"the path does not lead to the new root, of size {new_size}")


def _siblings(index: int, last: int) -> Iterator[tuple[int, int]]:
    """Walk from node `index` of a row that ends at `last` to the root; yield (height, index) of each sibling met."""
    height = 0
    while last > 0:
        # The last node of a row of odd length has no sibling and rises as it is.
        if index % 2 or index < last:
            yield height, index ^ 1
        index, last, height = index // 2, last // 2, height + 1


def _is_left(index: int) -> bool:
    return index % 2 == 0


def subtree_path(level: int, index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """Return the siblings from a subtree's up to the root's child; the last of a level may be incomplete.

    The root that they lead to is `root_from_inclusion_path` of the subtree's hash, as if it were a leaf of a tree of
    ⌈size / 2^level⌉ leaves.
    """
    return [
        _fold([hash_at(*node) for node in _subtrees(sibling << at, min((sibling + 1) << at, size))])
        for at, sibling in ((level + height, sibling) for height, sibling in _siblings(index, (size - 1) >> level))
    ]


def _subtrees(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cover the leaves from start up to stop with the largest complete subtrees, left to right, as (level, index)."""
    while start < stop:
        level = (stop - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _last_subtree(size: int) -> tuple[int, int]:
    """Return (level, index) of the rightmost, smallest complete subtree of a tree of this size, at least 1."""
    level = (size & -size).bit_length() - 1
    return level, (size >> level) - 1


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Hash subtrees of falling height, left to right, into the root over them all."""
    root = hashes[-1]
    for left in hashes[-2::-1]:
        root = node_hash(left, root)
    return root


def _trailing_ones(size: int) -> int:
    return (~size & (size + 1)).bit_length() - 1


def _check_path(path: Sequence[bytes], length: int) -> None:
    if len(path) != length:
        raise ProofError(f"a path of {length} hashes was expected, not of {len(path)}")
    if any(len(node) != HASH_BYTES for node in path):
        raise ProofError(f"every hash of a path has {HASH_BYTES} bytes")

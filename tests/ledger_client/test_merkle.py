"""The tree against the vectors of Certificate Transparency, and against the recursive definition of RFC 6962."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_client import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_from_inclusion_path,
    verify_consistency,
    verify_inclusion,
)

# github.com/google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc
VECTOR_ENTRIES = [
    bytes.fromhex(entry)
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
VECTOR_LEAVES = [leaf_hash(entry) for entry in VECTOR_ENTRIES]
VECTOR_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
VECTOR_INCLUSION = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
VECTOR_CONSISTENCY = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*naive_path(index, leaves[:split]), naive_root(leaves[split:])]
    return [*naive_path(index - split, leaves[split:]), naive_root(leaves[:split])]


def naive_proof(old_size: int, leaves: list[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 6962 section 2.1.2, word for word."""
    if old_size == len(leaves):
        return [] if whole else [naive_root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old_size <= split:
        return [*naive_proof(old_size, leaves[:split], whole=whole), naive_root(leaves[split:])]
    return [*naive_proof(old_size - split, leaves[split:], whole=False), naive_root(leaves[:split])]


class Tree:
    """Leaf hashes that answer for complete subtrees and for nothing else."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.leaves = leaves

    def hash_at(self, level: int, index: int) -> bytes:
        covered = self.leaves[index << level : (index + 1) << level]
        assert len(covered) == 1 << level, "a proof asked for a subtree that is not complete"
        return naive_root(covered)


def numbered(size: int) -> list[bytes]:
    return [leaf_hash(str(index).encode()) for index in range(size)]


def grown(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.append(leaf)
    return frontier


def test_empty_root_is_the_hash_of_nothing() -> None:
    assert EMPTY_ROOT == hashlib.sha256().digest() == Frontier().root()


@pytest.mark.parametrize("size", range(9))
def test_vector_roots(size: int) -> None:
    assert grown(VECTOR_LEAVES[:size]).root().hex() == VECTOR_ROOTS[size]


@pytest.mark.parametrize(("index", "size", "path"), VECTOR_INCLUSION)
def test_vector_inclusion(index: int, size: int, path: list[str]) -> None:
    built = inclusion_path(index, size, Tree(VECTOR_LEAVES[:size]).hash_at)
    assert [node.hex() for node in built] == path
    verify_inclusion(VECTOR_LEAVES[index], index, size, built, bytes.fromhex(VECTOR_ROOTS[size]))


@pytest.mark.parametrize(("old_size", "new_size", "path"), VECTOR_CONSISTENCY)
def test_vector_consistency(old_size: int, new_size: int, path: list[str]) -> None:
    built = consistency_path(old_size, new_size, Tree(VECTOR_LEAVES[:new_size]).hash_at)
    assert [node.hex() for node in built] == path
    old_root, new_root = (bytes.fromhex(VECTOR_ROOTS[size]) for size in (old_size, new_size))
    verify_consistency(old_size, old_root, new_size, new_root, built)


@pytest.mark.parametrize("size", range(1, 40))
def test_every_proof_equals_the_definition_and_verifies(size: int) -> None:
    leaves = numbered(size)
    tree = Tree(leaves)
    root = grown(leaves).root()
    assert root == naive_root(leaves)
    for index in range(size):
        path = inclusion_path(index, size, tree.hash_at)
        assert path == naive_path(index, leaves)
        verify_inclusion(leaves[index], index, size, path, root)
    for old_size in range(1, size + 1):
        path = consistency_path(old_size, size, tree.hash_at)
        assert path == naive_proof(old_size, leaves)
        verify_consistency(old_size, naive_root(leaves[:old_size]), size, root, path)


@given(st.integers(0, 300))
def test_frontier_survives_its_encoding(size: int) -> None:
    frontier = grown(numbered(size))
    assert Frontier.decode(size, frontier.encode()) == frontier


@given(st.integers(0, 2**12).map(lambda size: size | 1), st.integers(1, 9))
def test_completed_subtrees_are_complete(prefix: int, height: int) -> None:
    size = (prefix << height) % 1024
    leaves = numbered(size + 1)
    chain = grown(leaves[:size]).completed_by(leaves[size])
    assert len(chain) == ((size + 1) & -(size + 1)).bit_length()
    for level, node in enumerate(chain):
        assert node == Tree(leaves).hash_at(level, size >> level)


@pytest.mark.parametrize(
    ("size", "raw"), [(1, b""), (0, b"\0" * 32), (2, b"\0" * 64), (1, b"\0" * 31), (3, b"\0" * 63)]
)
def test_frontier_refuses_what_does_not_fit(size: int, raw: bytes) -> None:
    with pytest.raises(ValueError, match="frontier"):
        Frontier.decode(size, raw)


@st.composite
def inclusion_cases(draw: st.DrawFn) -> tuple[int, list[bytes], int]:
    size = draw(st.integers(1, 200))
    return draw(st.integers(0, size - 1)), numbered(size), draw(st.integers(0, 2**32))


@given(inclusion_cases())
@settings(max_examples=200)
def test_any_flipped_bit_of_an_inclusion_proof_is_caught(case: tuple[int, list[bytes], int]) -> None:
    index, leaves, bit = case
    size = len(leaves)
    path, root = naive_path(index, leaves), naive_root(leaves)
    hashes = [leaves[index], *path, root]
    broken = _flip(hashes, bit)
    with pytest.raises(ProofError):
        verify_inclusion(broken[0], index, size, broken[1:-1], broken[-1])


@given(inclusion_cases(), st.integers(-3, 210))
def test_another_index_or_size_is_caught(case: tuple[int, list[bytes], int], other: int) -> None:
    index, leaves, _ = case
    size, path, root = len(leaves), naive_path(index, leaves), naive_root(leaves)
    if other != index:
        with pytest.raises(ProofError):
            verify_inclusion(leaves[index], other, size, path, root)
    for wrong in (path[:-1], [*path, root]):
        if wrong != path:
            with pytest.raises(ProofError):
                verify_inclusion(leaves[index], index, size, wrong, root)


@st.composite
def consistency_cases(draw: st.DrawFn) -> tuple[int, list[bytes], int]:
    size = draw(st.integers(1, 200))
    return draw(st.integers(1, size)), numbered(size), draw(st.integers(0, 2**32))


@given(consistency_cases())
@settings(max_examples=200)
def test_any_flipped_bit_of_a_consistency_proof_is_caught(case: tuple[int, list[bytes], int]) -> None:
    old_size, leaves, bit = case
    hashes = [naive_root(leaves[:old_size]), naive_root(leaves), *naive_proof(old_size, leaves)]
    broken = _flip(hashes, bit)
    with pytest.raises(ProofError):
        verify_consistency(old_size, broken[0], len(leaves), broken[1], broken[2:])


@given(consistency_cases())
def test_a_consistency_path_of_another_length_is_caught(case: tuple[int, list[bytes], int]) -> None:
    old_size, leaves, _ = case
    path, old_root, root = naive_proof(old_size, leaves), naive_root(leaves[:old_size]), naive_root(leaves)
    for wrong in ([*path, root], path[:-1]):
        if wrong != path:
            with pytest.raises(ProofError):
                verify_consistency(old_size, old_root, len(leaves), root, wrong)


def test_every_tree_extends_the_empty_one_and_itself() -> None:
    root = naive_root(numbered(5))
    verify_consistency(0, EMPTY_ROOT, 5, root, [])
    verify_consistency(5, root, 5, root, [])
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    for old_size, old_root, new_size, path in [(0, root, 5, []), (5, EMPTY_ROOT, 5, []), (0, EMPTY_ROOT, 5, [root])]:
        with pytest.raises(ProofError):
            verify_consistency(old_size, old_root, new_size, root, path)
    with pytest.raises(ProofError, match="cannot extend"):
        verify_consistency(6, root, 5, root, [])


def test_hashes_of_another_length_are_refused() -> None:
    with pytest.raises(ProofError, match="32 bytes"):
        root_from_inclusion_path(EMPTY_ROOT, 0, 2, [b"short"])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 3), (3, 3)])
def test_no_path_to_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_path(index, size, Tree(numbered(size)).hash_at)
    with pytest.raises(ProofError, match="no leaf"):
        root_from_inclusion_path(EMPTY_ROOT, index, size, [])


def test_no_path_to_a_smaller_tree() -> None:
    with pytest.raises(ValueError, match="does not extend"):
        consistency_path(4, 3, Tree(numbered(3)).hash_at)


def _flip(hashes: list[bytes], bit: int) -> list[bytes]:
    which, offset, mask = bit % len(hashes), bit // 7 % 32, 1 << bit // 3 % 8
    broken = bytearray(hashes[which])
    broken[offset] ^= mask
    return [*hashes[:which], bytes(broken), *hashes[which + 1 :]]

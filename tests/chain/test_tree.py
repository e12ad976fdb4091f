"""The payout tree against OpenZeppelin's own, from npm: root, proofs, and the dump, which each reads."""

from __future__ import annotations

import json
import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_client.addresses import to_address
from ledger_client.settlement import PayoutTree
from tests.npm import node

from .kit import HERE, modules

TREES = int(os.environ.get("TRIBUTARY_TREES", "60"))

accounts = st.binary(min_size=20, max_size=20).filter(any).map(to_address)
amounts = st.dictionaries(accounts, st.integers(1, 2**100), min_size=1, max_size=40)


def openzeppelin(sets: list[dict[str, int]]) -> list[dict[str, object]]:
    """Every set's tree, all in one process."""
    lines = [json.dumps([[account, str(units)] for account, units in each.items()]) for each in sets]
    printed = node(HERE / "tree.mjs", str(modules()), stdin="\n".join(lines) + "\n")
    return [json.loads(line) for line in printed.splitlines()]


def agrees(tree: PayoutTree, theirs: dict[str, object]) -> None:
    assert "0x" + tree.root.hex() == theirs["root"]
    assert {claim.account: ["0x" + node.hex() for node in claim.proof] for claim in tree.claims()} == theirs["proofs"]
    assert tree.dump() == theirs["dump"]
    assert PayoutTree.load(theirs["dump"]) == tree  # type: ignore[arg-type]
    for claim in tree.claims():
        claim.verify()


# A batch an example, since starting node costs more than a thousand trees.
@given(st.lists(amounts, min_size=1, max_size=30))
@settings(max_examples=max(TREES // 15, 1))
def test_any_tree_is_openzeppelins(sets: list[dict[str, int]]) -> None:
    trees = [PayoutTree(amounts=each) for each in sets]
    for tree, theirs in zip(trees, openzeppelin([dict(tree.amounts) for tree in trees]), strict=True):
        agrees(tree, theirs)


def test_trees_of_every_size_are_openzeppelins() -> None:
    rows = random.Random(1)  # noqa: S311  a fixed row of trees, no secret
    trees = [
        PayoutTree(amounts={to_address(rows.randbytes(20)): rows.randrange(1, 10**12) for _ in range(size)})
        for size in [*range(1, 34), 63, 64, 65, 127, 128, 129, 1000]
    ]
    for tree, theirs in zip(trees, openzeppelin([dict(tree.amounts) for tree in trees]), strict=True):
        agrees(tree, theirs)

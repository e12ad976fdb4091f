"""Payouts in token units, the tree over them, and the file that carries it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_client import ProofError
from ledger_client.addresses import AddressError, to_address
from ledger_client.settlement import (
    Claim,
    Payouts,
    PayoutTree,
    SettlementError,
    payable_nano,
    token_units,
    units_nano,
)

ALICE, BOB, CAROL = (to_address(bytes([number]) * 20) for number in (0xA1, 0xB0, 0xCA))

accounts = st.binary(min_size=20, max_size=20).filter(any).map(to_address)
trees = st.builds(PayoutTree, amounts=st.dictionaries(accounts, st.integers(1, 2**100), min_size=1, max_size=20))


@pytest.mark.parametrize(
    ("amount_nano", "decimals", "units"),
    [
        (0, 6, 0),
        (999, 6, 0),
        (1000, 6, 1),
        (1_999_999, 6, 1999),
        (10**9, 6, 10**6),
        (1, 9, 1),
        (1, 18, 10**9),
        (5, 0, 0),
    ],
)
def test_nano_become_units_rounded_down(amount_nano: int, decimals: int, units: int) -> None:
    assert token_units(amount_nano, decimals) == units


@given(st.integers(0, 10**30), st.integers(0, 18))
def test_dust_is_less_than_a_unit_and_never_negative(amount_nano: int, decimals: int) -> None:
    paid = payable_nano(amount_nano, decimals)
    assert 0 <= amount_nano - paid < max(10 ** (9 - decimals), 1)
    assert token_units(paid, decimals) == token_units(amount_nano, decimals)


@given(st.lists(st.integers(0, 10**15)), st.integers(0, 9))
def test_what_is_paid_bit_by_bit_never_passes_what_was_earned(earned: list[int], decimals: int) -> None:
    balance = paid = 0
    for amount_nano in earned:
        balance += amount_nano
        units = token_units(balance, decimals)
        balance -= units_nano(units, decimals)
        paid += units
    assert units_nano(paid, decimals) + balance == sum(earned)
    assert paid == token_units(sum(earned), decimals)


@pytest.mark.parametrize(("amount_nano", "decimals"), [(-1, 6), (1, -1), (1, 19)])
def test_amounts_and_tokens_that_do_not_exist_are_refused(amount_nano: int, decimals: int) -> None:
    with pytest.raises(SettlementError):
        token_units(amount_nano, decimals)


def test_units_smaller_than_a_nano_do_not_come_back() -> None:
    assert units_nano(3 * 10**9, 18) == 3
    with pytest.raises(SettlementError, match="whole number"):
        units_nano(1, 18)


def test_a_tree_of_one_leaf_is_its_leaf() -> None:
    tree = PayoutTree(amounts={ALICE: 7})
    claim = tree.claim(ALICE)
    assert claim.proof == ()
    claim.verify()
    assert tree.cumulative_total == 7


@given(trees)
def test_every_claim_verifies_and_no_neighbour_of_it_does(tree: PayoutTree) -> None:
    claims = list(tree.claims())
    assert [claim.account for claim in claims] == list(tree.amounts)
    assert sum(claim.cumulative for claim in claims) == tree.cumulative_total
    for claim in claims:
        claim.verify()
        foreign = claims[0] if claim != claims[0] else claims[-1]
        forged = [
            Claim(account=claim.account, cumulative=claim.cumulative + 1, root=claim.root, proof=claim.proof),
            Claim(account=to_address(b"\x01" * 20), cumulative=claim.cumulative, root=claim.root, proof=claim.proof),
            Claim(account=claim.account, cumulative=claim.cumulative, root=b"\1" * 32, proof=claim.proof),
            Claim(
                account=claim.account, cumulative=claim.cumulative, root=claim.root, proof=(*claim.proof, claim.root)
            ),
        ]
        if foreign != claim:
            forged.append(
                Claim(account=claim.account, cumulative=claim.cumulative, root=claim.root, proof=foreign.proof)
            )
        for each in forged:
            if each != claim:
                with pytest.raises(ProofError):
                    each.verify()


@given(trees, st.randoms())
def test_the_order_of_the_amounts_is_nobodys_business(tree: PayoutTree, order: Any) -> None:
    shuffled = list(tree.amounts.items())
    order.shuffle(shuffled)
    other = PayoutTree(amounts=dict(shuffled))
    assert other.root == tree.root
    assert json.dumps(other.dump()) == json.dumps(tree.dump())


@pytest.mark.parametrize("amounts", [{}, {ALICE: 0}, {ALICE: -1}, {ALICE: 2**128}, {ALICE: 2**127, BOB: 2**127}])
def test_a_tree_has_leaves_and_they_have_amounts(amounts: dict[str, int]) -> None:
    with pytest.raises(SettlementError):
        PayoutTree(amounts=amounts)


def test_an_address_in_another_spelling_is_refused() -> None:
    with pytest.raises(AddressError, match="EIP-55"):
        PayoutTree(amounts={ALICE.lower(): 1})


def test_an_address_that_was_never_due_anything_has_no_claim() -> None:
    with pytest.raises(SettlementError, match="nothing was ever settled"):
        PayoutTree(amounts={ALICE: 1}).claim(BOB)


def test_proofs_are_of_whole_hashes() -> None:
    with pytest.raises(ProofError, match="32 bytes"):
        Claim(account=ALICE, cumulative=1, root=bytes(32), proof=(b"short",))


PAYOUTS = Payouts(period="2026-10", epoch=3, token_decimals=6, tree=PayoutTree(amounts={ALICE: 5, BOB: 70, CAROL: 900}))


def test_a_payout_file_survives_its_encoding() -> None:
    assert Payouts.decode(PAYOUTS.encode()) == PAYOUTS
    nobody = Payouts(period="2026-10", epoch=1, token_decimals=6, tree=None)
    assert Payouts.decode(nobody.encode()) == nobody
    assert (nobody.root, nobody.cumulative_total) == (None, 0)


def test_a_payout_file_says_what_people_look_for() -> None:
    said = json.loads(PAYOUTS.encode())
    assert said["period"] == "2026-10"
    assert said["cumulative_total"] == "975"
    assert said["tree"]["format"] == "standard-v1"


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another root": lambda file: file.update(root="0x" + "00" * 32),
    "another total": lambda file: file.update(cumulative_total="976"),
    "another amount": lambda file: file["tree"]["values"][0]["value"].__setitem__(1, "6"),
    "a number": lambda file: file["tree"]["values"][0]["value"].__setitem__(1, 5),
    "leading zero": lambda file: file["tree"]["values"][0]["value"].__setitem__(1, "05"),
    "another account": lambda file: file["tree"]["values"][0]["value"].__setitem__(0, "0x" + "01" * 20),
    "a lower account": lambda file: file["tree"]["values"][0]["value"].__setitem__(0, ALICE.lower()),
    "another order": lambda file: file["tree"]["values"].reverse(),
    "another hash": lambda file: file["tree"]["tree"].__setitem__(1, "0x" + "11" * 32),
    "a leaf less": lambda file: file["tree"]["values"].pop(),
    "a leaf twice": lambda file: file["tree"]["values"].append(file["tree"]["values"][0]),
    "no tree": lambda file: file.update(tree=None),
    "a list for a tree": lambda file: file.update(tree=[]),
    "values of numbers": lambda file: file["tree"].update(values=[1]),
    "another format": lambda file: file.update(format="tributary-payouts-v2"),
    "another encoding": lambda file: file["tree"].update(leafEncoding=["address", "uint128"]),
    "a period of days": lambda file: file.update(period="2026-10-01"),
    "a month that is none": lambda file: file.update(period="2026-13"),
    "epoch zero": lambda file: file.update(epoch=0),
    "an epoch in words": lambda file: file.update(epoch="3"),
    "true for an epoch": lambda file: file.update(epoch=True),
    "a member more": lambda file: file.update(note="trust me"),
    "a member less": lambda file: file.pop("epoch"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_payout_file_that_was_changed_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    file = json.loads(PAYOUTS.encode())
    change(file)
    with pytest.raises(SettlementError):
        Payouts.decode(json.dumps(file, separators=(",", ":")).encode() + b"\n")


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b"7"])
def test_what_is_no_payout_file_is_refused(raw: bytes) -> None:
    with pytest.raises(SettlementError):
        Payouts.decode(raw)

"""The contract on a real chain, through the client that operators use: what it pays, and everything that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ledger_client import leaf_hash
from ledger_client.addresses import to_address
from ledger_client.chain import Anchor, ChainError, Distributor, Epoch
from ledger_client.settlement import Claim, PayoutTree, SettlementError

from .kit import HOUR_S, Anvil, Site

DAY_S = 24 * HOUR_S


def refused(error: str, call: Callable[[], object]) -> ChainError:
    """Require that the contract refuses with this error of its own."""
    with pytest.raises(ChainError) as caught:
        call()
    assert caught.value.error == error, caught.value
    return caught.value


def claim_raw(distributor: Distributor, account: str, cumulative: int, root: bytes, proof: tuple[bytes, ...]) -> object:
    """Claim without the client's own checks, as a stranger's client would."""
    return distributor.chain.send(distributor.functions.claim(account, cumulative, root, list(proof)))


def test_a_new_distributor_owes_and_knows_nothing(site: Site) -> None:
    standing = site.distributor.standing()
    assert (standing.owner, standing.pending_owner) == (site.owner.address, None)
    assert (standing.token, standing.token_decimals, standing.timelock_s) == (site.token.address, 6, HOUR_S)
    assert (standing.funded, standing.claimed, standing.latest_epoch, standing.current_epoch) == (0, 0, 0, 0)
    assert standing.anchor is None
    assert site.distributor.epoch(0) is None
    assert site.distributor.epoch(1) is None
    assert site.distributor.claimed(site.alice.address) == 0


@pytest.mark.parametrize("timelock_s", [0, HOUR_S - 1, 30 * DAY_S + 1])
def test_a_timelock_leaves_time_and_ends(anvil: Anvil, timelock_s: int) -> None:
    refused("InvalidTimelock", lambda: Site(anvil, timelock_s=timelock_s))


def test_a_token_is_a_contract(site: Site) -> None:
    def deploy() -> object:
        return Distributor.deploy(site.anvil.url, token=site.alice.address, timelock_s=HOUR_S, key=site.owner)

    refused("InvalidToken", deploy)


def test_a_claim_pays_once_what_the_root_gives(site: Site) -> None:
    site.fund(1000)
    tree = site.post({site.alice.address: 30, site.bob.address: 470})
    sent = site.distributor.claim(tree.claim(site.alice.address))
    assert sent is not None
    assert site.distributor.balance(site.alice.address) == site.distributor.claimed(site.alice.address) == 30
    assert site.distributor.claim(tree.claim(site.alice.address)) is None
    claim = tree.claim(site.alice.address)
    refused("NothingToClaim", lambda: claim_raw(site.distributor, claim.account, 30, claim.root, claim.proof))
    assert site.distributor.balance(site.distributor.address) == 970


def test_anyone_may_send_a_claim_and_only_its_account_is_paid(site: Site) -> None:
    site.fund(5)
    tree = site.post({site.alice.address: 5})
    site.seen_by(site.stranger).claim(tree.claim(site.alice.address))
    assert site.distributor.balance(site.alice.address) == 5
    assert site.distributor.balance(site.stranger.address) == 0


def test_a_later_root_pays_the_difference_and_ends_the_earlier_one(site: Site) -> None:
    site.fund(100)
    first = site.post({site.alice.address: 10, site.bob.address: 20})
    site.distributor.claim(first.claim(site.alice.address))
    second = site.post({site.alice.address: 15, site.bob.address: 50, site.carol.address: 1})
    refused("RootNotCurrent", lambda: site.distributor.claim(first.claim(site.bob.address)))
    for account, paid in ((site.alice, 15), (site.bob, 50), (site.carol, 1)):
        site.distributor.claim(second.claim(account.address))
        assert site.distributor.balance(account.address) == site.distributor.claimed(account.address) == paid
    assert site.distributor.standing().claimed == 66


def test_a_root_waits_out_its_timelock_to_the_second(site: Site) -> None:
    site.fund(10)
    tree = site.post({site.alice.address: 10}, ripe=False)
    epoch = site.distributor.epoch(1)
    assert epoch is not None
    assert epoch.claimable_at_s is not None
    assert epoch.claimable_at_s == site.anvil.now_s() + HOUR_S
    assert site.distributor.standing().current_epoch == 0
    site.anvil.sleep_until(epoch.claimable_at_s - 1)
    refused("RootNotCurrent", lambda: site.distributor.claim(tree.claim(site.alice.address)))
    site.anvil.sleep_until(epoch.claimable_at_s)
    assert site.distributor.standing().current_epoch == 1
    site.distributor.claim(tree.claim(site.alice.address))


def test_the_earlier_root_pays_while_the_later_one_waits(site: Site) -> None:
    site.fund(10)
    first = site.post({site.alice.address: 3})
    second = site.post({site.alice.address: 10}, ripe=False)
    refusal = refused("RootNotCurrent", lambda: site.distributor.claim(second.claim(site.alice.address)))
    assert "epoch 2 waits out its timelock: claims open at 2" in str(refusal)
    site.distributor.claim(first.claim(site.alice.address))
    assert site.distributor.balance(site.alice.address) == 3


def test_a_proof_of_another_account_or_amount_pays_nothing(site: Site) -> None:
    site.fund(1000)
    tree = site.post({site.alice.address: 30, site.bob.address: 470, site.carol.address: 5})
    alice, bob = tree.claim(site.alice.address), tree.claim(site.bob.address)
    for account, cumulative, proof in (
        (alice.account, 31, alice.proof),
        (alice.account, 30, bob.proof),
        (alice.account, 470, bob.proof),
        (site.stranger.address, 470, bob.proof),
        (alice.account, 30, alice.proof[:-1]),
        (alice.account, 30, (*alice.proof, bytes(32))),
        (alice.account, 30, ()),
    ):
        raw = (account, cumulative, tree.root, proof)
        refused("InvalidProof", lambda raw=raw: claim_raw(site.distributor, *raw))
    assert site.distributor.standing().claimed == 0


def test_before_any_root_nothing_proves_anything(site: Site) -> None:
    site.fund(10)
    for root in (bytes(32), leaf_hash(b"")):
        refused("RootNotCurrent", lambda root=root: claim_raw(site.distributor, site.alice.address, 1, root, ()))
    site.distributor.post(site.epoch(None))
    site.anvil.sleep(HOUR_S)
    refused("RootNotCurrent", lambda: claim_raw(site.distributor, site.alice.address, 1, bytes(32), ()))


def test_claims_never_pass_what_was_funded(site: Site) -> None:
    site.fund(10)
    tree = site.post({site.alice.address: 7, site.bob.address: 4})
    site.distributor.claim(tree.claim(site.alice.address))
    # Tokens that were only sent here are nobody's promise.
    site.mint(site.distributor.address, 100)
    refused("AboveFunded", lambda: site.distributor.claim(tree.claim(site.bob.address)))
    site.fund(11)
    site.distributor.claim(tree.claim(site.bob.address))
    standing = site.distributor.standing()
    assert standing.claimed == standing.funded == 11


def test_claims_never_pass_the_total_that_was_posted(site: Site) -> None:
    site.fund(100)
    tree = site.post({site.alice.address: 7, site.bob.address: 4}, total=10)
    site.distributor.claim(tree.claim(site.alice.address))
    refused("AboveEpochTotal", lambda: site.distributor.claim(tree.claim(site.bob.address)))


def test_epochs_are_dense_and_totals_never_fall(site: Site) -> None:
    tree = PayoutTree(amounts={site.alice.address: 10})
    post = site.distributor.post
    refused("EpochNotNext", lambda: post(site.epoch(tree, number=2)))
    post(site.epoch(tree))
    refused("TotalFell", lambda: post(site.epoch(tree, total=9)))
    refused("LogNotGrowing", lambda: post(site.epoch(tree, log_size=10)))
    refused("LogForked", lambda: post(site.epoch(tree, log_root=bytes(32))))
    refused("TotalWithoutRoot", lambda: post(site.epoch(tree, root=None)))
    post(site.epoch(tree))
    assert site.distributor.standing().latest_epoch == 2


@pytest.mark.parametrize(
    "member",
    [
        {"number": 0},
        {"cumulative_total": -1},
        {"cumulative_total": 2**128},
        {"root": b"short"},
        {"log_root": b"short"},
        {"log_size": -1},
        {"log_size": 2**63},
    ],
)
def test_an_epoch_that_no_chain_can_hold_is_refused_at_birth(member: dict[str, Any]) -> None:
    sound: dict[str, Any] = {
        "number": 1,
        "root": bytes(32),
        "cumulative_total": 1,
        "log_size": 1,
        "log_root": bytes(32),
    }
    assert Epoch(**sound).claimable_at_s is None
    with pytest.raises(SettlementError):
        Epoch(**sound | member)


def test_an_epoch_in_which_nobody_was_ever_due_anything_has_no_root(site: Site) -> None:
    epoch = site.epoch(None)
    site.distributor.post(epoch)
    assert site.distributor.epoch(1) == epoch
    tree = PayoutTree(amounts={site.alice.address: 10})
    refused("TotalWithoutRoot", lambda: site.distributor.post(site.epoch(tree, total=0)))


def test_posting_again_changes_nothing_and_posting_otherwise_is_refused(site: Site) -> None:
    tree = PayoutTree(amounts={site.alice.address: 10})
    epoch = site.epoch(tree)
    assert site.distributor.post(epoch) is not None
    assert site.distributor.epoch(1) == epoch
    assert site.distributor.post(epoch) is None
    for change in ({"root": leaf_hash(b"")}, {"total": 11}, {"log_size": 11}, {"log_root": leaf_hash(b"fork")}):
        other = site.epoch(tree, number=1, **{"log_size": 10, "log_root": epoch.log_root} | change)  # type: ignore[arg-type]
        with pytest.raises(ChainError, match="holds another epoch 1"):
            site.distributor.post(other)


def test_so_many_epochs_may_wait_and_no_more(site: Site) -> None:
    tree = PayoutTree(amounts={site.alice.address: 10})
    for _ in range(32):
        site.distributor.post(site.epoch(tree))
    refused("TooManyPending", lambda: site.distributor.post(site.epoch(tree)))
    site.fund(10)
    site.anvil.sleep(HOUR_S)
    site.distributor.post(site.epoch(tree))
    site.distributor.claim(tree.claim(site.alice.address))


def test_a_root_is_revoked_while_it_waits_and_its_number_posted_anew(site: Site) -> None:
    site.fund(100)
    wrong = site.post({site.stranger.address: 100}, ripe=False)
    assert site.distributor.revoke(1) is not None
    assert site.distributor.revoke(1) is None
    assert site.distributor.epoch(1) is None
    site.anvil.sleep(HOUR_S)
    refused("RootNotCurrent", lambda: site.distributor.claim(wrong.claim(site.stranger.address)))
    right = PayoutTree(amounts={site.alice.address: 100})
    site.distributor.post(site.epoch(right))
    site.anvil.sleep(HOUR_S)
    site.distributor.claim(right.claim(site.alice.address))
    assert site.distributor.balance(site.alice.address) == 100


def test_a_root_that_can_be_claimed_against_can_never_be_revoked(site: Site) -> None:
    site.post({site.alice.address: 1})
    refused("NotRevocable", lambda: site.distributor.revoke(1))
    site.post({site.alice.address: 2}, ripe=False)
    site.post({site.alice.address: 3}, ripe=False)
    refused("NotRevocable", lambda: site.distributor.revoke(2))
    for number in (3, 2):
        site.distributor.revoke(number)
    assert site.distributor.standing().latest_epoch == 1


def test_what_was_said_of_the_log_outlives_a_revoked_root(site: Site) -> None:
    site.post({site.alice.address: 1}, ripe=False)
    site.distributor.revoke(1)
    assert site.distributor.log_root_at(10) == leaf_hash(b"1")
    tree = PayoutTree(amounts={site.alice.address: 1})
    refused("LogForked", lambda: site.distributor.post(site.epoch(tree, log_root=leaf_hash(b"fork"))))


def test_only_the_owner_posts_revokes_anchors_and_sweeps(site: Site) -> None:
    stranger, tree = site.seen_by(site.stranger), PayoutTree(amounts={site.stranger.address: 10})
    site.post({site.alice.address: 1}, ripe=False)
    site.mint(site.distributor.address, 1)
    unauthorised: list[Callable[[], object]] = [
        lambda: stranger.post(site.epoch(tree)),
        lambda: stranger.revoke(1),
        lambda: stranger.anchor(Anchor(size=99, root=leaf_hash(b""))),
        lambda: stranger.chain.send(stranger.functions.sweep(site.token.address, site.stranger.address)),
        lambda: stranger.chain.send(stranger.functions.transferOwnership(site.stranger.address)),
        lambda: stranger.chain.send(stranger.functions.acceptOwnership()),
    ]
    for call in unauthorised:
        refused("OwnableUnauthorizedAccount", call)


def test_ownership_passes_when_the_new_owner_takes_it_and_is_never_thrown_away(site: Site) -> None:
    owner, heir = site.distributor, site.seen_by(site.carol)
    owner.chain.send(owner.functions.transferOwnership(site.carol.address))
    assert owner.standing().pending_owner == site.carol.address
    refused("OwnableUnauthorizedAccount", lambda: heir.anchor(Anchor(size=1, root=leaf_hash(b""))))
    heir.chain.send(heir.functions.acceptOwnership())
    heir.anchor(Anchor(size=1, root=leaf_hash(b"")))
    refused("OwnableUnauthorizedAccount", lambda: owner.anchor(Anchor(size=2, root=leaf_hash(b""))))
    refused("OwnerRequired", lambda: heir.chain.send(heir.functions.renounceOwnership()))


def test_anyone_may_fund_and_funding_up_to_a_total_is_done_once(site: Site) -> None:
    site.mint(site.stranger.address, 500)
    stranger = site.seen_by(site.stranger)
    assert stranger.fund(300) is not None
    assert stranger.fund(300) is None
    assert stranger.fund(200) is None
    assert stranger.fund(400) is not None
    assert stranger.standing().funded == stranger.balance(stranger.address) == 400
    refused("ERC20InsufficientBalance", lambda: stranger.fund(1000))
    refused("NothingToMove", lambda: stranger.chain.send(stranger.functions.fund(0)))


def test_the_owner_gets_back_strays_and_never_what_was_funded(site: Site) -> None:
    def sweep(token: str) -> object:
        return site.distributor.chain.send(site.distributor.functions.sweep(token, site.carol.address))

    site.fund(100)
    tree = site.post({site.alice.address: 40})
    refused("NothingToMove", lambda: sweep(site.token.address))
    site.mint(site.distributor.address, 7)
    sweep(site.token.address)
    assert site.distributor.balance(site.carol.address) == 7
    site.distributor.claim(tree.claim(site.alice.address))
    refused("NothingToMove", lambda: sweep(site.token.address))
    assert site.distributor.balance(site.distributor.address) == 60
    other = site.anvil.create("TestToken")
    other.functions.mint(site.distributor.address, 9).transact()
    sweep(other.address)
    assert other.functions.balanceOf(site.carol.address).call() == 9


def test_anchors_grow_and_a_fork_is_refused(site: Site) -> None:
    distributor = site.distributor
    head = Anchor(size=5, root=leaf_hash(b"five"))
    assert distributor.anchor(head) is not None
    assert distributor.anchor(head) is None
    assert distributor.standing().anchor == head
    refused("LogNotGrowing", lambda: distributor.anchor(Anchor(size=5, root=leaf_hash(b"fork"))))
    refused("LogNotGrowing", lambda: distributor.anchor(Anchor(size=4, root=leaf_hash(b"four"))))
    refused("LogNotGrowing", lambda: distributor.anchor(Anchor(size=0, root=leaf_hash(b""))))
    refused("LogForked", lambda: distributor.anchor(Anchor(size=6, root=bytes(32))))


def test_an_epoch_anchors_its_log_behind_or_before_the_last_anchor(site: Site) -> None:
    tree = PayoutTree(amounts={site.alice.address: 1})
    site.distributor.anchor(Anchor(size=15, root=leaf_hash(b"fifteen")))
    site.distributor.post(site.epoch(tree))  # of size 10
    assert site.distributor.standing().anchor == Anchor(size=15, root=leaf_hash(b"fifteen"))
    assert site.distributor.log_root_at(10) == leaf_hash(b"1")
    refused("LogForked", lambda: site.distributor.post(site.epoch(tree, log_size=15)))
    site.distributor.post(site.epoch(tree))
    assert site.distributor.standing().anchor == Anchor(size=20, root=leaf_hash(b"2"))


def test_a_token_that_keeps_some_counts_with_what_arrives(anvil: Anvil) -> None:
    site = Site(anvil, currency="TakingToken")
    site.mint(site.owner.address, 1000)
    site.distributor.chain.send(site.token.functions.approve(site.distributor.address, 1000))
    site.distributor.chain.send(site.distributor.functions.fund(1000))
    assert site.distributor.standing().funded == site.distributor.balance(site.distributor.address) == 990


def test_a_token_that_answers_nothing_pays(anvil: Anvil) -> None:
    site = Site(anvil, currency="SilentToken")
    site.fund(50)
    tree = site.post({site.alice.address: 50})
    site.distributor.claim(tree.claim(site.alice.address))
    assert site.distributor.balance(site.alice.address) == 50


def test_a_token_that_refuses_leaves_the_claim_open(anvil: Anvil) -> None:
    site = Site(anvil, currency="RefusingToken")
    site.fund(50)
    tree = site.post({site.alice.address: 50})
    refused("SafeERC20FailedOperation", lambda: site.distributor.claim(tree.claim(site.alice.address)))
    assert site.distributor.claimed(site.alice.address) == site.distributor.standing().claimed == 0


@pytest.mark.parametrize("again", ["claim", "fund"])
def test_a_token_that_calls_back_gets_nothing_twice(anvil: Anvil, again: str) -> None:
    site = Site(anvil, currency="CallingToken")
    site.fund(100)
    tree = site.post({site.alice.address: 10, site.bob.address: 20})
    bob = tree.claim(site.bob.address)
    arguments: tuple[Any, ...] = (bob.account, bob.cumulative, bob.root, list(bob.proof)) if again == "claim" else (1,)
    data = site.distributor.functions[again](*arguments)._encode_transaction_data()
    site.token.functions.watch(site.distributor.address, data).transact()
    refused("ReentrancyGuardReentrantCall", lambda: site.distributor.claim(tree.claim(site.alice.address)))
    site.mint(site.owner.address, 100)
    refused("ReentrancyGuardReentrantCall", lambda: site.distributor.fund(200))
    assert site.distributor.standing().claimed == 0


def test_every_change_is_an_event(site: Site) -> None:
    site.fund(100)
    tree = site.post({site.alice.address: 10})
    site.post({site.alice.address: 11}, ripe=False)
    site.distributor.revoke(2)
    site.distributor.claim(tree.claim(site.alice.address))
    site.distributor.anchor(Anchor(size=77, root=leaf_hash(b"")))
    site.mint(site.distributor.address, 3)
    site.distributor.chain.send(site.distributor.functions.sweep(site.token.address, site.carol.address))
    contract = site.distributor._contract
    said = {
        event: [dict(each["args"]) for each in contract.events[event].get_logs(from_block=0)]
        for event in ("Funded", "EpochPosted", "EpochRevoked", "Claimed", "Anchored", "Swept")
    }
    assert said["Funded"] == [{"from": site.owner.address, "amount": 100, "totalFunded": 100}]
    assert [each["epoch"] for each in said["EpochPosted"]] == [1, 2]
    assert [each["epoch"] for each in said["EpochRevoked"]] == [2]
    assert said["Claimed"] == [{"account": site.alice.address, "epoch": 1, "amount": 10, "cumulative": 10}]
    assert [each["size"] for each in said["Anchored"]] == [10, 20, 77]
    assert said["Swept"] == [{"token": site.token.address, "to": site.carol.address, "amount": 3}]


def test_a_thousand_accounts_claim_from_one_root(site: Site) -> None:
    amounts = {to_address(number.to_bytes(20)): number for number in range(1, 1001)}
    site.fund(sum(amounts.values()))
    tree = site.post(amounts)
    for number in (1, 2, 499, 1000):
        claim = tree.claim(to_address(number.to_bytes(20)))
        assert isinstance(claim, Claim)
        site.distributor.claim(claim)
        assert site.distributor.balance(claim.account) == number

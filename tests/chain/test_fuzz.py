"""Everything that can be done to a distributor, in any order, against a model of it in a few dictionaries.

TRIBUTARY_CHAIN_EXAMPLES sets how many runs of 25 steps; the default takes about half a minute of one core.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger_client import leaf_hash
from ledger_client.addresses import to_address
from ledger_client.chain import Anchor, ChainError, Epoch
from ledger_client.settlement import PayoutTree

from .kit import HOUR_S, Site

EXAMPLES = int(os.environ.get("TRIBUTARY_CHAIN_EXAMPLES", "25"))
ACCOUNTS = [to_address(b"account %012d" % number) for number in range(4)]

accounts = st.sampled_from(ACCOUNTS)
units = st.integers(1, 1000)
funds = st.integers(1, 250)  # often too little
short = st.sampled_from([0, 0, 0, 0, 20, 500])  # how much of the tree's sum the posted total leaves out
increments = st.dictionaries(accounts, st.integers(1, 100), min_size=1, max_size=4)


@dataclass(frozen=True)
class Posted:
    """An epoch that the model believes to be on chain."""

    epoch: Epoch
    tree: PayoutTree
    ripe_at_s: int


class Machine(RuleBasedStateMachine):
    """A distributor, its owner's ledger, and what both should be."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.anvil = site.anvil
        self.distributor = site.distributor
        self._example = ExitStack()

    @initialize(earned=increments, funds=funds, short=short, ripe=st.booleans())
    def begin(self, earned: dict[str, int], funds: int, short: int, ripe: bool) -> None:
        self._example.enter_context(self.anvil.forgetting())
        self.now_s = self.anvil.now_s() + 1
        self.anvil.sleep_until(self.now_s)
        self.due: dict[str, int] = {}  # what the ledger says, by address
        self.trees: list[PayoutTree] = []  # all that were ever made, posted or not, revoked or not
        self.epochs: list[Posted] = []
        self.log_roots: dict[int, bytes] = {}
        self.claimed = dict.fromkeys(ACCOUNTS, 0)
        self.funded = self.stray = 0
        # So much the owner has, and every unit of it is somewhere at the end.
        self.minted = 10_000
        self.site.mint(self.site.owner.address, self.minted)
        self.month(earned, funds, short, ripe)

    @property
    def current(self) -> Posted | None:
        ripe = [posted for posted in self.epochs if posted.ripe_at_s <= self.now_s]
        return ripe[-1] if ripe else None

    @property
    def log_size(self) -> int:
        return max(self.log_roots, default=0)

    def outcome(self, call: Any) -> str | None:
        """The error with which a call is refused, None when it is not."""
        try:
            call()
        except ChainError as error:
            if error.error is None:
                raise  # no refusal of the contract's
            event(error.error)
            return error.error
        return None

    @rule(earned=increments, funds=funds, short=short, ripe=st.booleans())
    def month(self, earned: dict[str, int], funds: int, short: int, ripe: bool) -> None:
        """What an operator does, all in order: without it few runs come as far as a claim."""
        for account, amount in earned.items():
            self.due[account] = self.due.get(account, 0) + amount
        self.trees.append(PayoutTree(amounts=self.due))
        self._post(self.trees[-1], short=short)
        self.fund(funds)
        if ripe:
            self.wait(HOUR_S)

    @rule(
        data=st.data(),
        skew=st.sampled_from([0, 0, 0, 0, -1, 1]),
        short=short,
        growth=st.sampled_from([5, 5, 5, 0]),
        fork=st.sampled_from([False, False, False, True]),
    )
    def post(self, data: st.DataObject, skew: int, short: int, growth: int, fork: bool) -> None:
        """Post what an operator should not: an old tree, a wrong number, too small a total, a log that stands."""
        self._post(data.draw(st.sampled_from(self.trees)), skew, short, growth, fork=fork)

    def _post(self, tree: PayoutTree, skew: int = 0, short: int = 0, growth: int = 5, *, fork: bool = False) -> None:
        last = self.epochs[-1] if self.epochs else None
        skew = skew if last else abs(skew)
        log_size = (last.epoch.log_size if last else 0) + growth
        known = self.log_roots.get(log_size)
        epoch = Epoch(
            number=len(self.epochs) + 1 + skew,
            root=tree.root,
            cumulative_total=max(tree.cumulative_total - short, 0),
            log_size=log_size,
            log_root=leaf_hash(b"fork") if fork else known or leaf_hash(b"%d" % log_size),
        )
        if skew == -1 and last:
            # The number is taken: by the same, which is no news, or by another, which the client finds itself.
            try:
                assert self.distributor.post(epoch) is None
                assert epoch == last.epoch
            except ChainError:
                assert epoch != last.epoch
            assert self.distributor.post(last.epoch) is None
            return
        expected = None
        if skew:
            expected = "EpochNotNext"
        elif last and epoch.cumulative_total < last.epoch.cumulative_total:
            expected = "TotalFell"
        elif not epoch.cumulative_total:
            expected = "TotalWithoutRoot"
        elif not growth:
            expected = "LogNotGrowing"
        elif known not in {None, epoch.log_root}:
            expected = "LogForked"
        assert self.outcome(lambda: self.distributor.post(epoch)) == expected
        if expected is None:
            self.log_roots[log_size] = epoch.log_root
            event("posted")
            self.epochs.append(Posted(epoch, tree, self.now_s + HOUR_S))

    @rule(seconds=st.sampled_from([1, HOUR_S // 2, HOUR_S - 1, HOUR_S, 5 * HOUR_S]))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.anvil.sleep_until(self.now_s)

    @precondition(lambda self: self.epochs)
    @rule(back=st.sampled_from([0, 0, 1]))
    def revoke(self, back: int) -> None:
        number = len(self.epochs) - back
        revocable = number and not back and self.epochs[-1].ripe_at_s > self.now_s
        outcome = self.outcome(lambda: self.distributor.revoke(number))
        if revocable:
            assert outcome is None
            event("revoked")
            self.epochs.pop()
        else:
            # Epoch 0 is none, which the client takes for revoked already.
            assert outcome == ("NotRevocable" if number else None)

    @rule(amount=units)
    def fund(self, amount: int) -> None:
        enough = self.funded + self.stray + amount <= self.minted
        outcome = self.outcome(lambda: self.distributor.fund(self.funded + amount))
        assert outcome == (None if enough else "ERC20InsufficientBalance")
        if enough:
            self.funded += amount

    @rule(amount=st.sampled_from([0, 0, 7]))
    def stray_in_or_sweep_out(self, amount: int) -> None:
        send, of = self.distributor.chain.send, self.distributor.functions
        if amount and self.funded + self.stray + amount <= self.minted:
            send(self.site.token.functions.transfer(self.distributor.address, amount))
            self.stray += amount
            return
        token, owner = self.site.token.address, self.site.owner.address
        assert self.outcome(lambda: send(of.sweep(token, owner))) == (None if self.stray else "NothingToMove")
        self.stray = 0

    @precondition(lambda self: self.current)
    @rule(order=st.lists(accounts, min_size=1, max_size=5))
    def claim(self, order: list[str]) -> None:
        """Claim against the current root, in any order, some twice, and some for whom it holds nothing."""
        assert self.current is not None
        for account in order:
            self._claim(self.current.tree, account, None, "stranger")

    @rule(account=accounts, data=st.data())
    def claim_what_is_not_due(self, account: str, data: st.DataObject) -> None:
        """Forge a claim, or take any root: one that waits, was revoked, was followed, or was never posted."""
        if self.current and data.draw(st.booleans()):
            self._claim(self.current.tree, account, data, data.draw(st.sampled_from(["owner", "stranger"])))
        else:
            self._claim(data.draw(st.sampled_from(self.trees)), account, None, "stranger")

    def _claim(self, tree: PayoutTree, account: str, forging: st.DataObject | None, sender: str) -> None:
        whose = account if account in tree.amounts else next(iter(tree.amounts))
        true = tree.claim(whose)
        cumulative, proof = true.cumulative, true.proof
        if forging is not None:
            cumulative += forging.draw(st.sampled_from([0, 1, -1, 1000]))
            proof = forging.draw(st.sampled_from([proof, proof[:-1], (*proof, tree.root), tuple(reversed(proof))]))
        genuine = account == whose and cumulative == true.cumulative and proof == true.proof
        current, total = self.current, sum(self.claimed.values()) + cumulative - self.claimed[account]
        expected = None
        if current is None or current.tree.root != tree.root:
            expected = "RootNotCurrent"
        elif not genuine:
            expected = "InvalidProof"
        elif cumulative <= self.claimed[account]:
            expected = "NothingToClaim"
        elif total > current.epoch.cumulative_total:
            expected = "AboveEpochTotal"
        elif total > self.funded:
            expected = "AboveFunded"
        client = self.site.stranger_client if sender == "stranger" else self.distributor
        function = client.functions.claim(account, cumulative, tree.root, list(proof))
        assert self.outcome(lambda: client.chain.send(function)) == expected
        if expected is None:
            event("paid")
            self.claimed[account] = cumulative

    @rule(growth=st.sampled_from([-1, 0, 1, 7]), fork=st.booleans())
    def anchor(self, growth: int, fork: bool) -> None:
        size = max(self.log_size + growth, 1)
        known = self.log_roots.get(size)
        root = leaf_hash(b"fork" if fork else b"%d" % size)
        outcome = self.outcome(lambda: self.distributor.anchor(Anchor(size=size, root=root)))
        if known == root:
            assert outcome is None
        elif size <= self.log_size:
            assert outcome == "LogNotGrowing"
        else:
            assert outcome is None
            self.log_roots[size] = root

    @invariant()
    def money_is_where_the_model_has_it(self) -> None:
        of, token = self.distributor.functions, self.site.token.functions
        paid = sum(self.claimed.values())
        total, funded, held, owned, *each = self.anvil.read(
            of.totalClaimed(),
            of.totalFunded(),
            token.balanceOf(self.distributor.address),
            token.balanceOf(self.site.owner.address),
            *map(of.claimed, ACCOUNTS),
            *map(token.balanceOf, ACCOUNTS),
        )
        assert total == paid <= funded == self.funded
        assert held == self.funded - paid + self.stray
        assert owned + held + paid == self.minted
        assert each == 2 * list(self.claimed.values())
        for account, amount in self.claimed.items():
            # A root that is current can never be taken back, so that dues only grow from there.
            assert amount <= (self.current.tree.amounts.get(account, 0) if self.current else 0)

    @invariant()
    def epochs_and_anchors_are_what_the_model_has(self) -> None:
        of = self.distributor.functions
        latest, current, size, root = self.anvil.read(
            of.latestEpoch(), of.currentEpoch(), of.anchoredSize(), of.logRootAt(self.log_size)
        )
        assert latest == len(self.epochs)
        assert current == (self.current.epoch.number if self.current else 0)
        assert size == self.log_size
        assert root.to_bytes(32) == self.log_roots.get(size, bytes(32))

    def teardown(self) -> None:
        for posted in self.epochs:
            assert self.distributor.epoch(posted.epoch.number) == posted.epoch
        self._example.close()


def test_a_distributor_is_its_model(site: Site) -> None:
    run_state_machine_as_test(
        lambda: Machine(site),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            deadline=None,
        ),
    )

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import apportion
from metering import AdapterTerms, DocumentTerms, MeteringError, PlayerShare, SplitLine, SplitPolicy, split

from .kit import ADAPTER, DOCUMENT, POLICY, request_id

REQUEST = request_id(1)
CHARGES = st.integers(0, 9_200_000_000_000_000_000) | st.integers(0, 50)
CONTRIBUTORS = st.sampled_from(["ann", "bob", "cy", "dev"])


@st.composite
def policies(draw: st.DrawFn) -> SplitPolicy:
    accounts = ["platform", "base:smol", "contributor:ann", "residual"]
    named = draw(st.lists(st.sampled_from(accounts), unique=True))
    fixed_ppm, left = {}, 1_000_000
    for account in named:
        fixed_ppm[account] = draw(st.integers(0, left))
        left -= fixed_ppm[account]
    return SplitPolicy(
        name="any",
        version=draw(st.integers(1, 9)),
        fixed_ppm=fixed_ppm,
        residual=draw(st.sampled_from(["residual", "platform"])),
        developer_ppm=draw(st.integers(0, 1_000_000)),
    )


@st.composite
def rosters(draw: st.DrawFn) -> list[PlayerShare]:
    documents = st.builds(DocumentTerms, owner=CONTRIBUTORS)
    datasets = st.lists(st.tuples(CONTRIBUTORS, st.integers(1, 10**9)), unique_by=lambda pair: pair[0]).map(tuple)
    adapters = st.builds(AdapterTerms, developer=CONTRIBUTORS, datasets=datasets)
    terms = draw(st.lists(documents | adapters, max_size=8))
    weights = draw(st.lists(st.integers(0, 1000), min_size=len(terms), max_size=len(terms)))
    keys = [bytes([i]) for i in range(len(terms))]
    shares = apportion(1_000_000, weights, keys) if any(weights) else [0] * len(terms)
    return [
        PlayerShare(id=f"player-{i}", share_ppm=share, terms=term)
        for i, (share, term) in enumerate(zip(shares, terms, strict=True))
    ]


@given(CHARGES, policies(), rosters(), st.integers(0, 2**64))
def test_a_split_sums_to_the_charge_whatever_the_policy_and_the_players(
    charge_nano: int, policy: SplitPolicy, players: list[PlayerShare], number: int
) -> None:
    lines = split(charge_nano, policy, players, request_id(number))
    assert sum(line.amount_nano for line in lines) == charge_nano
    assert all(line.amount_nano > 0 for line in lines)
    assert len({(line.account, line.role, line.kind, line.item) for line in lines}) == len(lines)


@given(CHARGES, policies(), rosters())
def test_a_player_gets_its_share_of_the_pool_within_one_nano_a_line(
    charge_nano: int, policy: SplitPolicy, players: list[PlayerShare]
) -> None:
    lines = split(charge_nano, policy, players, REQUEST)
    for player in players:
        through = [line for line in lines if (line.kind, line.item) == (player.terms.kind, player.id)]
        exact = Fraction(charge_nano * policy.pool_ppm * player.share_ppm, 10**12)
        parts = 1 if isinstance(player.terms, DocumentTerms) else 1 + len(player.terms.datasets)
        assert abs(sum(line.amount_nano for line in through) - exact) < parts


@given(CHARGES, policies(), rosters(), st.randoms())
def test_a_split_is_a_function_of_its_terms_and_not_of_their_order(
    charge_nano: int, policy: SplitPolicy, players: list[PlayerShare], random: st.DataObject
) -> None:
    lines = split(charge_nano, policy, players, REQUEST)
    assert split(charge_nano, policy, players, REQUEST) == lines
    shuffled = list(players)
    random.shuffle(shuffled)
    assert set(split(charge_nano, policy, shuffled, REQUEST)) == set(lines)


def test_the_parts_of_an_answer() -> None:
    assert split(1_000_000, POLICY, [DOCUMENT, ADAPTER], REQUEST) == (
        SplitLine(account="platform", role="fixed", amount_nano=100_000),
        SplitLine(account="base:smol", role="fixed", amount_nano=200_000),
        SplitLine(account="contributor:ann", role="owner", amount_nano=420_000, kind="document", item="doc_1"),
        SplitLine(account="contributor:dev", role="developer", amount_nano=196_000, kind="adapter", item="concise"),
        SplitLine(account="contributor:ann", role="dataset", amount_nano=28_000, kind="adapter", item="concise"),
        SplitLine(account="contributor:bob", role="dataset", amount_nano=56_000, kind="adapter", item="concise"),
    )


def test_without_a_paid_player_the_pool_is_residual() -> None:
    unpaid = PlayerShare(id="doc_1", share_ppm=0, terms=DocumentTerms(owner="ann"))
    for players in ([], [unpaid]):
        assert split(10, POLICY, players, REQUEST)[-1] == SplitLine(account="residual", role="residual", amount_nano=7)


def test_an_adapter_without_datasets_is_its_developers() -> None:
    alone = PlayerShare(id="a", share_ppm=1_000_000, terms=AdapterTerms(developer="dev"))
    policy = SplitPolicy(name="p", version=1, fixed_ppm={}, developer_ppm=0)
    assert [line.account for line in split(5, policy, [alone], REQUEST)] == ["contributor:dev"]


def test_equal_remainders_go_by_the_request() -> None:
    pair = [PlayerShare(id=i, share_ppm=500_000, terms=DocumentTerms(owner=i)) for i in ("x", "y")]
    policy = SplitPolicy(name="p", version=1, fixed_ppm={})
    winners = {split(1, policy, pair, request_id(number))[0].item for number in range(40)}
    assert winners == {"x", "y"}


def test_shares_are_whole_or_nothing() -> None:
    half = PlayerShare(id="doc_1", share_ppm=500_000, terms=DocumentTerms(owner="ann"))
    with pytest.raises(MeteringError, match="sum to 1000000"):
        split(10, POLICY, [half], REQUEST)
    with pytest.raises(MeteringError, match="more than once"):
        split(10, POLICY, [half, half], REQUEST)


def test_an_adapter_names_a_dataset_contributor_once_and_not_too_many() -> None:
    with pytest.raises(MeteringError, match="once"):
        AdapterTerms(developer="dev", datasets=(("ann", 1), ("ann", 2)))
    with pytest.raises(MeteringError, match="may name 100"):
        AdapterTerms(developer="dev", datasets=tuple((f"c{i}", 1) for i in range(101)))
    with pytest.raises(MeteringError, match="weight of ann"):
        AdapterTerms(developer="dev", datasets=(("ann", 0),))

"""Entries that name others: each name that does not fit is found, by the entry that names and by I8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ledger_client import JSON, Entry, Frontier, Signer, fsck, leaf_hash
from ledger_client.checkpoint import Checkpoint

from .conftest import ORIGIN
from .facts import adapted, attributed, documented, fact, granted, lines, priced, ruled, used

SIGNER = Signer.generate(ORIGIN)
PLAYERS: list[JSON] = [
    {"kind": "adapter", "id": "concise", "contributor": "dev", "share_ppm": 500_000},
    {"kind": "document", "id": "doc", "contributor": "ada", "share_ppm": 500_000},
]
OLD_SPLIT = lines(contributor_ada=750, platform=250)
NEW_SPLIT = lines(contributor_ada=500, contributor_bob=250, platform=250)
NEWER_SPLIT = lines(contributor_bob=750, platform=250)


def answered(**changes: JSON) -> Entry:
    named: dict[str, Any] = {"adapter_index": 2, "document_indexes": {"doc": 3}, "players": PLAYERS}
    return attributed(0, 5, **(named | changes))


def superseded(**changes: Any) -> Entry:
    members: dict[str, Any] = {
        "supersedes": 6,
        "request_id": "req_0",
        "usage_index": 5,
        "charge_nano": "1000",
        "policy_index": 1,
        "adapter_index": 2,
        "document_indexes": {"doc": 3},
        "players": PLAYERS,
        "correction": "a better estimate",
        "split": NEW_SPLIT,
        "replaced_split": OLD_SPLIT,
        "postings": lines(contributor_ada=-250, contributor_bob=250),
    }
    members |= changes
    return fact("answer.superseded", f"req_0:{members['supersedes']}", members)


def again(**changes: Any) -> Entry:
    members: dict[str, Any] = {
        "supersedes": 7,
        "split": NEWER_SPLIT,
        "replaced_split": NEW_SPLIT,
        "postings": lines(contributor_ada=-500, contributor_bob=500),
    }
    return superseded(**(members | changes))


def rated(**changes: Any) -> Entry:
    data: dict[str, Any] = {"request_id": "req_0", "usage_index": 5, "rating": 1, "comment_digest": None}
    return fact("feedback.recorded", "req_0:0", data | changes)


def versioned(version: JSON = 2, digest: str = "d2", name: str = "concise", **changes: JSON) -> Entry:
    data = {"adapter": name, "developer": "dev", "version": version, "digest": digest}
    return fact("adapter.registered", f"{name}@{version}:{digest}", data | changes)


def descends(index: JSON, version: JSON, digest: JSON, adapter: JSON = "concise") -> dict[str, Any]:
    return {"parents": [{"adapter": adapter, "version": version, "digest": digest, "log_index": index}]}


BASE = [priced(), ruled(), adapted(), documented(), granted("caller:ann", 9000), used(0, price_index=0), answered()]


def check(entries: Sequence[Entry], *, readable: bool = True) -> list[tuple[str, int | None]]:
    raws = [entry.encode() for entry in entries]
    frontier = Frontier()
    for raw in raws:
        frontier = frontier.append(leaf_hash(raw))
    note = SIGNER.sign(Checkpoint(origin=ORIGIN, size=frontier.size, root=frontier.root()))
    read = raws.__getitem__ if readable else None
    findings = fsck(enumerate(raws), [note], None, SIGNER.verifier, read=read)
    return [(finding.invariant, finding.log_index) for finding in findings]


def test_what_is_registered_is_found() -> None:
    assert check([*BASE, superseded(), again(), rated()]) == []


@pytest.mark.parametrize("index", [None, "0", 0.5, True, -1, 1, 4, 5, 99])
def test_a_charge_names_its_price(index: JSON) -> None:
    changed = used(0, price_index=index)
    assert check([*BASE[:5], changed, BASE[6]]) == [("I8", 5)]


def test_a_price_is_of_the_served_model() -> None:
    assert check([*BASE[:5], used(0, served_model="other"), BASE[6]]) == [("I8", 5)]


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_index": 0},
        {"policy_index": None},
        {"document_indexes": {"doc": 2}},
        {"document_indexes": {"doc": 3, "other": 3}},
        {"document_indexes": {"doc": 3, "doc2": 4}},
        {"document_indexes": [3]},
        {"players": None},
        {"players": ["doc"]},
        {"players": [*PLAYERS, {"kind": "document", "id": "other", "contributor": "ada"}]},
        {"players": [PLAYERS[0], {"kind": "document", "id": "doc", "contributor": "eve"}]},
        {"players": [{"kind": "adapter", "id": "concise", "contributor": "eve"}]},
        {"players": [{"kind": "adapter", "id": "other", "contributor": "dev"}]},
        {"players": [{"kind": "base", "id": "doc", "contributor": "ada"}]},
    ],
)
def test_an_attribution_names_what_it_relies_on(changes: dict[str, Any]) -> None:
    assert set(check([*BASE[:6], answered(**changes)])) == {("I8", 6)}


@pytest.mark.parametrize("index", [3, 6, 7, "2", False])
def test_an_attribution_names_its_adapter(index: JSON) -> None:
    assert set(check([*BASE[:6], answered(adapter_index=index)])) == {("I8", 6)}


def test_versions_follow_one_another_and_descend_from_earlier_ones() -> None:
    """The first entry of an adapter here is of the kind that says no version."""
    child = versioned(1, "d3", "brief", **descends(7, 2, "d2"))
    assert (
        check([*BASE, versioned(**descends(2, 1, None)), child, versioned(3, "d4", **descends(8, 1, "d3", "brief"))])
        == []
    )


@pytest.mark.parametrize("version", [1, 3, 0, "2", 2.5, True, None])
def test_a_version_that_does_not_follow_is_found(version: JSON) -> None:
    assert check([*BASE, versioned(version)]) == [("I8", 7)]


@pytest.mark.parametrize(
    "parents",
    [
        descends(7, 2, "d2"),  # itself
        descends(8, 3, "d3"),  # what comes after it
        descends(2, 1, "d1"),
        descends(2, 2, None),
        descends(2, 1, None, "brief"),
        descends(3, 1, None),
        descends("2", 1, None),
        descends(None, None, None, None),
        {"parents": ["concise@1"]},
        {"parents": "concise@1"},
        {"parents": None},
    ],
)
def test_a_parent_is_registered_before_its_child_as_it_is_named(parents: dict[str, Any]) -> None:
    assert check([*BASE, versioned(**parents), versioned(3, "d3")]) == [("I8", 7)]


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ({"supersedes": 5}, "I8"),
        ({"supersedes": 7}, "I8"),
        ({"supersedes": None}, "I8"),
        ({"request_id": "req_1"}, "I8"),
        ({"usage_index": 4}, "I8"),
        ({"usage_index": None}, "I8"),
        ({"replaced_split": NEW_SPLIT, "postings": []}, "I8"),
        ({"charge_nano": "999", "split": lines(platform=999), "postings": lines(contributor_ada=-750)}, "I2"),
        ({"split": lines(contributor_ada=500, platform=250), "postings": []}, "I2"),
        ({"postings": []}, "I2"),
        ({"postings": lines(contributor_ada=-250, contributor_eve=250)}, "I2"),
    ],
)
def test_a_correction_replaces_the_record_that_it_names(changes: dict[str, Any], invariant: str) -> None:
    assert (invariant, 7) in check([*BASE, superseded(**changes)])


def test_a_correction_names_the_record_in_force() -> None:
    stale = again(supersedes=6, replaced_split=OLD_SPLIT, postings=lines(contributor_ada=-750, contributor_bob=750))
    stale = fact("answer.superseded", "req_0:again", stale.data)
    assert check([*BASE, superseded(), stale]) == [("I8", 8)]


def test_a_first_correction_corrects_an_attribution() -> None:
    of_correction = again(supersedes=7)
    assert ("I8", 7) in check([*BASE, of_correction])


def test_what_cannot_be_read_is_not_passed_over() -> None:
    assert check([*BASE, superseded(), rated()], readable=False) == [("I8", 7), ("I8", 8)]


@pytest.mark.parametrize(
    "changes",
    [
        {"rating": 0},
        {"rating": 2},
        {"rating": True},
        {"rating": "1"},
        {"rating": 1.5},
        {"usage_index": None},
        {"usage_index": 6},
        {"usage_index": 7},
        {"usage_index": -1},
        {"request_id": "req_1"},
        {"request_id": None},
    ],
)
def test_a_rating_is_of_an_answer(changes: dict[str, Any]) -> None:
    assert check([*BASE, rated(**changes)]) == [("I8", 7)]


def test_a_rating_moves_nothing() -> None:
    assert check([*BASE, rated(postings=lines(platform=-1, residual=1))]) == [("I1", 7)]

"""What is counted the quick way comes out as the library would have counted it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.metrics import SECONDS, LedgerState, Metrics

LABELS = ("model", "status")
NOTHING = LedgerState(log_entries=0, open_intents=0, attribution_backlog=0, adapters_resident=0)
_series = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["200", "429"]))
_value = st.floats(0, 400) | st.sampled_from(SECONDS) | st.integers(0, 400)


def said(registry: CollectorRegistry, name: str) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if name in line and "_created" not in line]


@given(st.lists(st.tuples(_series, _value), max_size=30))
def test_what_is_counted_is_what_the_library_counts(counted: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = Metrics(lambda: NOTHING), CollectorRegistry()
    histogram, counter = ours.histogram("x_seconds", "x", LABELS, SECONDS), ours.counter("y", "y", LABELS)
    library = Histogram("x_seconds", "x", LABELS, registry=theirs, buckets=SECONDS)
    library_counter = Counter("y", "y", LABELS, registry=theirs)
    for labels, value in counted:
        histogram.labels(*labels).observe(value)
        library.labels(*labels).observe(value)
        counter.labels(*labels).inc(value)
        library_counter.labels(*labels).inc(value)
    for name in ("x_seconds", "y_total"):
        assert said(ours.registry, name) == said(theirs, name)


def test_a_counter_does_not_fall() -> None:
    with pytest.raises(ValueError, match="fall"):
        Metrics(lambda: NOTHING).counter("y", "y", LABELS).labels("a", "200").inc(-1)

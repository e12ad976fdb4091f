"""What an operator scrapes: OpenTelemetry's GenAI names where one exists, `tributary_*` where none does.

No label is a contributor, a request, a key or a document, so the number of series is bounded by the configuration.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.catalogue import ServedModel
from gateway.exchange import Answer
from gateway.routing.breaker import State
from gateway.routing.placement import Reason
from metering import Usage

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client keeps its values there, where it is set
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class _Remembering:
    """A metric that remembers its series by their labels; the library takes longer to find one than to count.

    Each of the two below counts into the library's own values, past its checks of what cannot be here.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._remembered: dict[tuple[object, ...], Any] = {}
        super().__init__(*arguments, **options)

    def labels(self, *values: object) -> Self:
        """The series with these labels."""
        if values not in self._remembered:
            self._remembered[values] = super().labels(*values)  # type: ignore[misc]
        series: Self = self._remembered[values]
        return series


class _Histogram(_Remembering, Histogram):  # type: ignore[misc]
    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count a value of a series; nothing here has exemplars."""
        del exemplar
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


class _Counter(_Remembering, Counter):  # type: ignore[misc]
    def inc(self, amount: float = 1, exemplar: Mapping[str, str] | None = None) -> None:
        """Add to a series, never less than nothing."""
        del exemplar
        if amount < 0:
            raise ValueError("a counter does not fall")
        self._value.inc(amount)


@dataclass(frozen=True, kw_only=True)
class LedgerState:
    """What the database says at the moment of a scrape."""

    log_entries: int
    open_intents: int
    attribution_backlog: int
    adapters_resident: int
    shipping_backlog: Mapping[str, int] = field(default_factory=dict)  # name of a ledger → entries it does not hold yet
    witness_lag_entries: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """Every series of one gateway process, in a registry of its own."""

    def __init__(self, state: Callable[[], LedgerState]) -> None:
        self.registry = CollectorRegistry()
        self.request_seconds = self.histogram(
            "gen_ai_server_request_duration_seconds",
            "From the request's arrival to its last byte",
            ("gen_ai_operation_name", "gen_ai_request_model", "status"),
            SECONDS,
        )
        self.first_token_seconds = self.histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request's arrival to the first token",
            ("gen_ai_request_model",),
            SECONDS,
        )
        self.token_seconds = self.histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between tokens after the first, mean of one answer",
            ("gen_ai_request_model",),
            SECONDS,
        )
        self.token_usage = self.histogram(
            "gen_ai_client_token_usage",
            "Tokens of one answer, by type",
            ("gen_ai_request_model", "gen_ai_token_type"),
            TOKENS,
        )
        self.attribution_seconds = self.histogram(
            "tributary_attribution_seconds", "Scoring and recording one attribution", ("estimator",), SECONDS
        )
        self.residual_ratio = self.histogram(
            "tributary_attribution_residual_ratio",
            "Efficiency residual over surplus, absolute",
            ("estimator",),
            RATIOS,
        )
        self.commit_seconds = self.histogram(
            "tributary_ledger_commit_seconds", "One commit as its caller waits for it", ("record",), SECONDS
        )
        self.attributions = self.counter("tributary_attributions_total", "Attributions by outcome", ("status",))
        self.charged_nano = self.counter(
            "tributary_charge_nano_total", "Charged to callers, nano-USD", ("gen_ai_request_model",)
        )
        self.credited_nano = self.counter(
            "tributary_credit_nano_total", "Credited by splits, nano-USD, by role", ("role",)
        )
        self.swept_intents = self.counter(
            "tributary_ledger_swept_intents_total", "Admitted requests voided because nobody answered them any more", ()
        )
        self.adapter_loads = self.counter("tributary_adapter_loads_total", "Adapters loaded into the engine", ())
        self.adapter_evictions = self.counter(
            "tributary_adapter_evictions_total", "Adapters taken out of the engine to make room", ()
        )
        self.routing = self.counter(
            "tributary_routing_decisions_total", "Requests by served model and why", ("gen_ai_request_model", "reason")
        )
        self.shipping_failures = self.counter(
            "tributary_ledger_shipping_failures_total",
            "Batches that a ledger elsewhere did not take, by why",
            ("ledger", "reason"),
        )
        self.shipping_success = self.gauge(
            "tributary_ledger_shipping_success_timestamp_seconds",
            "When a ledger elsewhere last held all that it was offered, in seconds since 1970",
            ("ledger",),
        )
        self.shipping_contradicted = self.gauge(
            "tributary_ledger_shipping_contradicted",
            "1 while a ledger elsewhere contradicts this log or itself",
            ("ledger",),
        )
        self.witness_failures = self.counter(
            "tributary_witness_failures_total", "Times that a witness gave no cosignature", ("witness",)
        )
        self.fleet = FleetMetrics(self)
        self.answering = self.gauge("tributary_requests_answering", "Requests being answered", ())
        self.waiting = self.gauge("tributary_requests_waiting", "Requests that wait for a turn", ())
        self.reload_success = self.gauge(
            "tributary_config_reload_success", "1 while the configuration read last is in force", (), "livemin"
        )
        self.reload_time = self.gauge(
            "tributary_config_reload_success_timestamp_seconds",
            "When a configuration last came into force, in seconds since 1970",
            (),
            "livemin",
        )
        self._state = _StateCollector(state)
        self.registry.register(self._state)

    def observe_turns(self, held: int, waiting: int) -> None:
        """Note how many requests are being answered, and how many wait for their turn."""
        self.answering.set(held)
        self.waiting.set(waiting)

    def observe_reload(self, *, taken: bool) -> None:
        """Note whether a configuration came into force."""
        self.reload_success.set(taken)
        if taken:
            self.reload_time.set_to_current_time()

    def observe_answer(self, answer: Answer) -> None:
        """Count an answer that was just metered."""
        model, usage = answer.question.model, answer.usage
        self.observe_usage(model, usage)
        if answer.first_token_s is not None and answer.last_token_s is not None:
            self.first_token_seconds.labels(model.name).observe(answer.first_token_s)
            if usage.completion_tokens > 1:
                rest_s = answer.last_token_s - answer.first_token_s
                self.token_seconds.labels(model.name).observe(rest_s / (usage.completion_tokens - 1))

    def observe_usage(self, model: ServedModel, usage: Usage) -> None:
        """Count tokens and charge."""
        self.token_usage.labels(model.name, "input").observe(usage.prompt_tokens)
        self.token_usage.labels(model.name, "output").observe(usage.completion_tokens)
        self.charged_nano.labels(model.name).inc(model.price.charge_nano(usage))

    def observe_attribution(self, attributed: Mapping[str, Any], seconds: float) -> None:
        """Count an attribution object that was just recorded."""
        estimator = attributed["estimator"]["name"]
        self.attribution_seconds.labels(estimator).observe(seconds)
        if attributed["surplus_nats"]:
            ratio = abs(attributed["estimator"]["residual_nats"] / attributed["surplus_nats"])
            self.residual_ratio.labels(estimator).observe(ratio)
        self.observe_split(attributed)

    def observe_split(self, attributed: Mapping[str, Any]) -> None:
        """Count a split that was just recorded, and what it credits."""
        self.attributions.labels(attributed["status"]).inc()
        for line in attributed["split"]:
            self.credited_nano.labels(line["role"]).inc(int(line["amount_nano"]))

    def render(self) -> bytes:
        """The exposition text; of several workers, that of all of them together."""
        whole = self.registry
        if folder := os.environ.get(METRICS_FOLDER):
            whole = CollectorRegistry()
            MultiProcessCollector(whole, folder)  # type: ignore[no-untyped-call]
            whole.register(self._state)
        return generate_latest(whole)

    def histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        """A histogram in the registry."""
        return _Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        """A counter in the registry."""
        return _Counter(name, text, labels, registry=self.registry)

    def gauge(
        self, name: str, text: str, labels: tuple[str, ...], of_several: Literal["livesum", "livemin"] = "livesum"
    ) -> Gauge:
        """A gauge in the registry. of_several: what becomes of the values of several processes."""
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=of_several)


class FleetMetrics:
    """What a fleet counts, by replica: a Watch. Each series is looked up once, not at each request."""

    def __init__(self, metrics: Metrics) -> None:
        self._all_loads, self._all_evictions = metrics.adapter_loads, metrics.adapter_evictions
        self._decisions = metrics.counter(
            "tributary_fleet_decisions_total",
            "Requests by the replica that they went to, and why",
            ("replica", "reason"),
        )
        self._retries = metrics.counter(
            "tributary_fleet_retries_total", "Requests tried again, by the replica that failed them", ("replica",)
        )
        self._load_seconds = metrics.histogram(
            "tributary_fleet_adapter_load_seconds",
            "Loading one adapter, and unloading what made room for it",
            ("replica",),
            SECONDS,
        )
        self._evictions = metrics.counter(
            "tributary_fleet_adapter_evictions_total", "Adapters taken out to make room, by replica", ("replica",)
        )
        self._ready = metrics.gauge("tributary_fleet_replica_ready", "1 while the replica takes work", ("replica",))
        self._breaker = metrics.gauge(
            "tributary_fleet_breaker_state", "1 for the state that a replica's breaker is in", ("replica", "state")
        )
        self._decision: dict[tuple[str, str], Counter] = {}

    def routed(self, replica: str, reason: Reason) -> None:
        """See Watch."""
        series = self._decision.get((replica, reason))
        if series is None:
            series = self._decision[replica, reason] = self._decisions.labels(replica, reason)
        series.inc()

    def loaded(self, replica: str, seconds: float) -> None:
        """See Watch."""
        self._all_loads.inc()
        self._load_seconds.labels(replica).observe(seconds)

    def evicted(self, replica: str) -> None:
        """See Watch."""
        self._all_evictions.inc()
        self._evictions.labels(replica).inc()

    def retried(self, replica: str) -> None:
        """See Watch."""
        self._retries.labels(replica).inc()

    def stands(self, replica: str, *, takes_work: bool, breaker: State) -> None:
        """See Watch."""
        self._ready.labels(replica).set(takes_work)
        for state in State:
            self._breaker.labels(replica, state.value).set(state is breaker)


class _StateCollector:
    """Gauges that are read from the database when they are scraped, and so cannot drift from it."""

    def __init__(self, state: Callable[[], LedgerState]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        yield GaugeMetricFamily("tributary_ledger_entries", "Entries in the log", value=state.log_entries)
        yield GaugeMetricFamily(
            "tributary_ledger_open_intents", "Requests admitted and neither charged nor void", value=state.open_intents
        )
        yield GaugeMetricFamily(
            "tributary_attribution_backlog", "Answers that wait for attribution", value=state.attribution_backlog
        )
        yield GaugeMetricFamily(
            "tributary_adapters_resident", "Adapters the engine holds", value=state.adapters_resident
        )
        backlog = GaugeMetricFamily(
            "tributary_ledger_shipping_backlog_entries",
            "Entries that a ledger elsewhere has not acknowledged",
            labels=("ledger",),
        )
        for ledger, entries in state.shipping_backlog.items():
            backlog.add_metric((ledger,), entries)
        yield backlog
        lag = GaugeMetricFamily(
            "tributary_witness_lag_entries", "Entries that a witness has not cosigned yet", labels=("witness",)
        )
        for witness, entries in state.witness_lag_entries.items():
            lag.add_metric((witness,), entries)
        yield lag

    def describe(self) -> Iterable[Metric]:
        return []

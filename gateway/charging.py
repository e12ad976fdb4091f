"""What is written of an answer in the transaction that charges it.

Where something took part that could be left out, that is a job, which scores and splits later. Where nothing did there
is nothing to find out, and the charge is split at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import orjson

from gateway import answers, scoring
from gateway.admission import touched
from gateway.answers import AnswerRow, SealedInputs
from gateway.identifiers import now
from gateway.objects import attributed_object, attribution_record, pending_object
from gateway.registry import Terms
from gateway.routing.names import Resolved
from metering import SUSPENSE, AttributionRecord, Books, Expected, Intent, SplitLine, Transaction, UsageRecord, split


@dataclass(frozen=True, kw_only=True)
class _AtOnce:
    """The end of an answer that nobody else took part in."""

    terms: Terms
    lines: tuple[SplitLine, ...]
    record: AttributionRecord


@dataclass(frozen=True, kw_only=True)
class Charge:
    """An answer that is generated, and who pays for it. salt: opens the digests of the usage.

    metered: its attribution object while it is not attributed. inputs: what a job will need, encoded.
    """

    intent: Intent
    usage: UsageRecord
    salt: bytes
    metered: dict[str, Any]
    inputs: SealedInputs
    at_once: _AtOnce | None

    @classmethod
    def of(
        cls,
        intent: Intent,
        usage: UsageRecord,
        *,
        salt: bytes,
        inputs: SealedInputs,
        terms: Terms,
        resolved: Resolved | None,
    ) -> Self:
        """Work out what is to be written. Raises MeteringError where the policy cannot split the charge."""
        at_once = None
        if not (inputs.passages or scoring.is_game(inputs, terms.adapter)):
            lines = split(usage.charge_nano, terms.policy, (), intent.request_id)
            record = attribution_record(intent.request_id, inputs, terms, None, lines, {})
            at_once = _AtOnce(terms=terms, lines=lines, record=record)
        metered = pending_object(intent.request_id, usage, resolved)
        return cls(intent=intent, usage=usage, salt=salt, metered=metered, inputs=inputs, at_once=at_once)

    @property
    def touches(self) -> Expected:
        """The rows that writing it looks at."""
        lines = self.at_once.lines if self.at_once else ()
        return touched(self.intent, SUSPENSE, *(line.account for line in lines))

    def write(self, books: Books, transaction: Transaction) -> dict[str, Any]:
        """Charge, and split or leave a job; returns the attribution object.

        Raises IntentError or MeteringError where the books refuse the charge.
        """
        usage_index = books.record_usage(transaction, self.intent, self.usage)
        record_index, shown = None, self.metered
        if at_once := self.at_once:
            record_index = books.record_attribution(transaction, at_once.record)
            shown = attributed_object(shown, self.inputs, at_once.terms, None, at_once.lines, record_index)
        row = AnswerRow(
            request_id=self.intent.request_id,
            caller=self.intent.account,
            status=shown["status"],
            created_at=now(),
            usage_index=usage_index,
            record_index=record_index,
            attempts=0,
            salt=self.salt,
            inputs=None if at_once else self.inputs.encode(),
            attribution=orjson.dumps(shown),
        )
        answers.insert(transaction, row)
        return shown

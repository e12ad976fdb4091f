"""What the clients of a simulation ask for: commands made by lot, new ones and old ones again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

from attribution import apportion
from metering import (
    AdapterTerms,
    AttributionRecord,
    Books,
    Budget,
    DocumentTerms,
    Expected,
    Intent,
    PlayerShare,
    SettlementTerms,
    Transaction,
    bind_address,
    open_intents,
    record_feedback,
    settle,
    supersede,
)
from tests.metering.kit import attribution_record, request_id, usage_record

from .load import DOCUMENT_INDEXES, PRICE_INDEXES, register
from .model import Command, Model

ACCOUNTS = ("caller:alice", "caller:bob")
KEYS = ("key_" + "a" * 26, "key_" + "b" * 26)
CONTRIBUTORS = ("ann", "bob", "dev")
PLAYERS = (
    ("doc_1", DocumentTerms(owner="ann")),
    ("doc_2", DocumentTerms(owner="bob")),
    ("concise", AdapterTerms(developer="dev", datasets=(("ann", 1), ("bob", 2)))),
)
MODELS = ("chat", "plain")
CONTRACT = "0x" + "44" * 20
DISTRIBUTOR = f"eip155:31337:{CONTRACT}"

Work: TypeAlias = Callable[[Books, Transaction], Any]

# Of each command the same of the books. Every one takes (books, transaction, *arguments of the command).


def _grant(books: Books, tx: Transaction, account: str, amount: int, key: str) -> int:
    return books.grant_credit(tx, account, amount, "more", key)


def _admit(
    books: Books, tx: Transaction, request: str, account: str, maximum: int, tokens: int, key: str | None
) -> Intent:
    return books.admit(tx, account, maximum, request, key=key, maximum_tokens=tokens)


def _sweep(books: Books, tx: Transaction, of: str | None, before: str | None, reason: str) -> list[int]:
    found = list(open_intents(tx.connection, of, admitted_before=before))
    return [books.void(tx, intent, reason) for intent in found]


def _bind(books: Books, tx: Transaction, contributor: str, address: str, nonce: int) -> int:
    signature = "0x" + "00" * 65
    return bind_address(
        books, tx, contributor, address, nonce=nonce, chain_id=31337, contract=CONTRACT, signature=signature
    )


def _settle(books: Books, tx: Transaction, period: str, method: str, minimum: int) -> tuple[int, dict[str, int]]:
    chain = method == "chain"
    terms = SettlementTerms(
        method="chain" if chain else "csv",
        distributor=DISTRIBUTOR if chain else None,
        minimum_nano=minimum,
    )
    done = settle(books, tx, period, terms)
    return done.log_index, {payout.contributor: payout.amount_nano for payout in done.payouts}


WORKS: dict[str, Callable[..., Any]] = {
    "register": register,
    "grant": _grant,
    "limit": Books.set_budget,
    "admit": _admit,
    "use": Books.record_usage,
    "void": Books.void,
    "sweep": _sweep,
    "attribute": Books.record_attribution,
    "supersede": supersede,
    "rate": record_feedback,
    "bind": _bind,
    "settle": _settle,
}


def expected_by(command: Command) -> Expected:
    """Return the rows that a command looks at, as far as they show in it; the sweeps find theirs."""
    texts = [value for value in command.arguments if isinstance(value, str)]
    for value in command.arguments:
        if isinstance(value, Intent):
            texts += [value.request_id, value.account]
        elif isinstance(value, AttributionRecord):
            texts.append(value.request_id)
    return Expected(
        accounts=tuple(text for text in texts if text.startswith("caller:")),
        requests=tuple(text for text in texts if text.startswith("req_")),
        budgets=tuple(text for text in texts if text.startswith(("caller:", "key_"))),
    )


class Clients:
    """Everybody who asks. They know what the model knows, but what they ask may arrive when it is long otherwise."""

    def __init__(self, lots: Random, model: Model) -> None:
        self._lots = lots
        self._model = model
        self._requests = 0
        self._asked: list[Command] = []

    def ask(self) -> Command:
        """Make the next command."""
        if self._asked and self._lots.random() < 0.15:
            return self._lots.choice(self._asked)  # a client that does not know whether it was heard
        kinds = {
            self._grant: 2,
            self._admit: 9,
            self._use: 8,
            self._void: 2,
            self._attribute: 6,
            self._supersede: 2,
            self._rate: 3,
            self._bind: 1,
            self._limit: 1,
        }
        make = self._lots.choices(list(kinds), list(kinds.values()))[0]
        command = make()
        self._asked.append(command)
        return command

    def settle(self, month: str) -> Command:
        """Ask to close the month whose turn it is, or another."""
        last = max(self._model.closed, default=None)
        first = self._model.facts[0].time[:7] if self._model.facts else month
        turn = first if last is None else f"{int(last[:4]) + int(last[5:]) // 12:04}-{int(last[5:]) % 12 + 1:02}"
        period = self._lots.choices((turn, month, last or first), (8, 1, 1))[0]
        method = self._lots.choice(("csv", "chain"))
        return Command(name="settle", arguments=(period, method, self._lots.choice((0, 1_000, 20_000))))

    def _grant(self) -> Command:
        lots = self._lots
        account, amount, key = (
            lots.choice(ACCOUNTS),
            lots.choice((1, 90_000, 2_000_000)),
            f"grant-{lots.randint(0, 25)}",
        )
        return Command(name="grant", arguments=(account, amount, key))

    def _limit(self) -> Command:
        lots = self._lots
        budget = Budget(
            subject=lots.choice((*ACCOUNTS, *KEYS)),
            monthly_nano=lots.choice((None, None, 100_000, 400_000)),
            requests_per_minute=lots.choice((None, None, 3, 8)),
            tokens_per_minute=lots.choice((None, None, 300, 900)),
        )
        return Command(name="limit", arguments=(budget,))

    def _admit(self) -> Command:
        lots = self._lots
        if lots.random() < 0.95 or not self._requests:
            self._requests += 1
            number = self._requests
        else:
            number = lots.randint(1, self._requests)  # an id that is taken
        maximum, tokens = lots.choice((0, 20_000, 50_000)), lots.choice((0, 150, 300))
        key = lots.choice((None, *KEYS))
        return Command(name="admit", arguments=(request_id(number), lots.choice(ACCOUNTS), maximum, tokens, key))

    def _use(self) -> Command:
        lots = self._lots
        intent = self._some_intent(open_first=True)
        if intent is None:
            return self._admit()
        most = max(intent.maximum_nano, 600) // 600
        tokens = lots.randint(0, min(most, 50)), lots.randint(0, most // 2)
        model = lots.choice(MODELS)
        record = usage_record(*tokens, served_model=model, price_index=PRICE_INDEXES[model])
        return Command(name="use", arguments=(intent, record))

    def _void(self) -> Command:
        intent = self._some_intent(open_first=self._lots.random() < 0.8)
        if intent is None:
            return self._admit()
        return Command(name="void", arguments=(intent, self._lots.choice(("the client left", "the engine failed"))))

    def _attribute(self) -> Command:
        record = self._some_record(waiting_first=self._lots.random() < 0.9)
        return Command(name="attribute", arguments=(record,)) if record else self._admit()

    def _supersede(self) -> Command:
        record = self._some_record(waiting_first=False)
        why = self._lots.choice(("the scores were wrong", "the owner was another"))
        return Command(name="supersede", arguments=(record, why)) if record else self._admit()

    def _rate(self) -> Command:
        intent = self._some_intent(open_first=False)
        if intent is None:
            return self._admit()
        return Command(name="rate", arguments=(intent.request_id, self._lots.choice((1, -1))))

    def _bind(self) -> Command:
        lots = self._lots
        address = "0x" + lots.choice(("11", "22", "33")) * 20
        return Command(name="bind", arguments=(lots.choice(CONTRIBUTORS), address, lots.randint(0, 6)))

    def _some_intent(self, *, open_first: bool) -> Intent | None:
        known = self._model.open if open_first else []
        known = known or [request.intent for request in self._model.requests.values()]
        return self._lots.choice(known) if known else None

    def _some_record(self, *, waiting_first: bool) -> AttributionRecord | None:
        lots = self._lots
        charged = [request for request in self._model.requests.values() if request.usage]
        known = [request for request in charged if request.in_force is None] if waiting_first else []
        if not (known or charged):
            return None
        request = lots.choice(known or charged)
        assert request.usage is not None
        weights = [lots.choice((0, 1, 2, 7)) for _ in PLAYERS]
        keys = [name.encode() for name, _ in PLAYERS]
        shares = apportion(1_000_000, weights, keys) if any(weights) else [0] * len(PLAYERS)
        players = [
            PlayerShare(id=name, share_ppm=share, terms=terms)
            for (name, terms), share in zip(PLAYERS, shares, strict=True)
        ]
        charge = request.usage.charge_nano + lots.choices((0, 100), (20, 1))[0]  # a split of another charge is refused
        return attribution_record(request.intent.request_id, charge, players, document_indexes=DOCUMENT_INDEXES)

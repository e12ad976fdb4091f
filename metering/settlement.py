"""Settlement: a month is closed and what it left on contributors' accounts is paid; both are entries of the log.

Nothing here sends money. A payout moves an amount from a contributor's account to `payouts`; from there it is claimed
on a chain, against the root that the closing entry holds, or paid by whatever the exported list is fed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import Connection, func, insert, select

from ledger_client import (
    JSON,
    Entry,
    Payouts,
    PayoutTree,
    PeriodError,
    check_closing,
    from_address,
    next_period,
    payable_nano,
    statements_root,
    token_units,
)
from metering._checks import CONTRIBUTOR, LIMIT_NANO, check_text, check_whole
from metering.books import Books, in_role, lines_of, transfer
from metering.earnings import checked_period
from metering.errors import MeteringError
from metering.postings import PAYOUTS, contributor_account
from metering.statements import summaries
from metering.tables import account_period_table, address_table, payout_table, period_table
from metering.transaction import Transaction

Method: TypeAlias = Literal["chain", "csv"]
Read: TypeAlias = Callable[[int], bytes]
"""Log index → the bytes of its entry."""

TOKEN_DECIMALS = 6  # of USDC
DISTRIBUTOR = "eip155:[1-9][0-9]{0,15}:0x[0-9a-fA-F]{40}"  # CAIP-10: the chain, and the contract on it

_ADD_PAYOUT = insert(payout_table)
_ADD_PERIOD = insert(period_table)
_ADD_ADDRESS = insert(address_table)


@dataclass(frozen=True, kw_only=True)
class SettlementTerms:
    """How a period is paid. minimum_nano: a smaller balance is carried forward. token_decimals: 0 … 18.

    method: "chain" pays contributors who have bound an address, the others are carried forward; "csv" pays everyone.
    distributor: of "chain", the contract that is claimed from, as `eip155:CHAIN_ID:ADDRESS`. Amounts accumulate for
    each distributor by itself, so that a new one never pays again what an old one has paid.
    """

    method: Method
    distributor: str | None = None
    minimum_nano: int = 0
    token_decimals: int = TOKEN_DECIMALS

    def __post_init__(self) -> None:
        check_text("method", self.method, "|".join(get_args(Method)))
        if self.method == "chain":
            check_text("distributor", self.distributor or "", DISTRIBUTOR)
        elif self.distributor is not None:
            raise MeteringError("a list is paid by no distributor")
        check_whole("minimum_nano", self.minimum_nano)
        check_whole("token_decimals", self.token_decimals, maximum=18)


@dataclass(frozen=True, kw_only=True)
class Payout:
    """What one contributor is paid for a period, and the log index that says so. address: None when paid by list."""

    log_index: int
    contributor: str
    period: str
    method: str
    address: str | None
    distributor: str | None
    amount_nano: int

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; the amount is a decimal string."""
        return dict(vars(self)) | {"amount_nano": str(self.amount_nano)}


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """A closed period as its entry, at log_index, says: statements, their root in hex, and what is paid.

    distributor: the contract that the payouts are claimed from, None where they are paid by list. claims: what can be
    claimed from it since, everything that earlier settlements left to claim there included.
    """

    period: str
    distributor: str | None
    log_index: int
    statements: int
    statements_root: str
    payouts: tuple[Payout, ...]
    claims: Payouts

    @property
    def paid_nano(self) -> int:
        """What the payouts of this period sum to."""
        return sum(payout.amount_nano for payout in self.payouts)

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        root = self.claims.root
        return {
            "period": self.period,
            "distributor": self.distributor,
            "epoch": self.claims.epoch,
            "log_index": self.log_index,
            "statements": self.statements,
            "statements_root": self.statements_root,
            "payouts": [payout.as_json() for payout in self.payouts],
            "paid_nano": str(self.paid_nano),
            "payout_root": root and root.hex(),
            "cumulative_total": str(self.claims.cumulative_total),
            "token_decimals": self.claims.token_decimals,
        }


def settle(books: Books, transaction: Transaction, period: str, terms: SettlementTerms) -> Settlement:
    """Close a period, pay what is due for it, and return what was done; a closed period is returned as it was closed.

    Raises PeriodError when the period has not ended or it is not its turn, MeteringError when it is none.
    """
    checked_period(period)
    connection = transaction.connection
    read = transaction.log.entry
    if (closed := settlement(connection, period, read)) is not None:
        return closed
    _check_turn(transaction, period, books.now())
    heads = summaries(connection, period)
    addresses = payout_addresses(connection)
    paid_since = _paid_after(connection, period)
    for head in heads:
        address = addresses.get(head.contributor)
        account = contributor_account(head.contributor)
        # What was taken back since the month ended, by a correction or another payout, is not paid out again.
        left_nano = min(head.closing_nano + paid_since.get(account, 0), transaction.balance(account).posted_nano)
        amount_nano = payable_nano(max(left_nano, 0), terms.token_decimals)
        if amount_nano and amount_nano >= terms.minimum_nano and (address or terms.method == "csv"):
            to = address if terms.method == "chain" else None
            _pay(books, transaction, period, head.contributor, amount_nano, terms, to)
    # The connection is asked for again, for that writes what was just held.
    paid = payouts(transaction.connection, period)
    claims = Payouts(
        period=period,
        epoch=1 + len(closed_periods(connection, terms.distributor)),
        token_decimals=terms.token_decimals,
        tree=_tree(connection, terms.distributor, terms.token_decimals, transaction.log.size),
    )
    root = claims.root
    data: dict[str, JSON] = {
        "period": period,
        "statements": len(heads),
        "statements_root": statements_root(heads).hex(),
        "payouts": len(paid),
        "paid_nano": str(sum(payout.amount_nano for payout in paid)),
        "method": terms.method,
        "distributor": terms.distributor,
        "minimum_payout_nano": str(terms.minimum_nano),
        "token_decimals": terms.token_decimals,
        "epoch": claims.epoch,
        "payout_root": root and root.hex(),
        "cumulative_total": str(claims.cumulative_total),
    }
    appended = books.log(transaction, "period.closed", period, period, data, new=True)
    transaction.set_last_closed(period)
    row = {"period": period, "log_index": appended.log_index, "time": appended.entry.time}
    transaction.defer(_ADD_PERIOD, row | {"distributor": terms.distributor})
    return Settlement(
        period=period,
        distributor=terms.distributor,
        log_index=appended.log_index,
        statements=len(heads),
        statements_root=str(data["statements_root"]),
        payouts=paid,
        claims=claims,
    )


def due_period(transaction: Transaction) -> str:
    """Return the period whose turn it is to be closed, over or not. Raises PeriodError for an empty log."""
    last_closed = transaction.last_closed()
    if last_closed is not None:
        return next_period(last_closed)
    if transaction.log.size == 0:
        raise PeriodError("the log is empty, so there is no period to close")
    return Entry.decode(transaction.log.entry(0)).time[:7]


def settlement(connection: Connection, period: str, read: Read) -> Settlement | None:
    """Return how a period was closed, or None while it is open."""
    log_index = connection.scalar(select(period_table.c.log_index).where(period_table.c.period == period))
    if log_index is None:
        return None
    data: Mapping[str, Any] = Entry.decode(read(log_index)).data
    return Settlement(
        period=period,
        distributor=data["distributor"],
        log_index=log_index,
        statements=data["statements"],
        statements_root=data["statements_root"],
        payouts=payouts(connection, period),
        claims=Payouts(
            period=period,
            epoch=data["epoch"],
            token_decimals=data["token_decimals"],
            tree=_tree(connection, data["distributor"], data["token_decimals"], log_index),
        ),
    )


def closed_periods(connection: Connection, distributor: str | None) -> list[str]:
    """Return the periods that were closed for a distributor, or for a list: in order, those of epochs 1, 2 and on."""
    of_it = period_table.c.distributor.is_not_distinct_from(distributor)
    return list(connection.scalars(select(period_table.c.period).where(of_it).order_by(period_table.c.period)))


def payouts(connection: Connection, period: str) -> tuple[Payout, ...]:
    """Return what was paid for a period, by contributor."""
    query = select(payout_table).where(payout_table.c.period == period)
    return tuple(
        sorted(
            (Payout(**row._mapping) for row in connection.execute(query)),
            key=lambda payout: payout.contributor,
        )
    )


def bind_address(
    books: Books,
    transaction: Transaction,
    contributor: str,
    address: str,
    *,
    nonce: int,
    chain_id: int,
    contract: str,
    signature: str,
) -> int:
    """Log that a contributor is paid at an address from now on, and return the log index.

    signature: by that address, in hex with 0x, over the typed data that says all of this; the caller has verified it.
    nonce: above that of every earlier binding of the contributor. Repeating the newest binding logs nothing.
    """
    check_text("contributor", contributor, CONTRIBUTOR)
    check_text("signature", signature, "0x[0-9a-f]{130}")
    for spelled in (address, contract):
        from_address(spelled)
    check_whole("nonce", nonce, maximum=LIMIT_NANO)
    check_whole("chain_id", chain_id, minimum=1, maximum=2**53 - 1)
    data: dict[str, JSON] = {
        "contributor": contributor,
        "address": address,
        "chain_id": chain_id,
        "contract": contract,
        "nonce": nonce,
        "signature": signature,
    }
    last = last_nonce(transaction.connection, contributor)
    if last is not None and nonce < last:
        raise MeteringError(f"the nonce of a binding rises: {contributor} has used {last} already, not {nonce}")
    appended = books.log(transaction, "address.bound", f"{contributor}:{nonce}", contributor, data)
    if appended.created:
        row = {"log_index": appended.log_index, "contributor": contributor, "address": address, "nonce": nonce}
        transaction.defer(_ADD_ADDRESS, row)
    return appended.log_index


def payout_addresses(connection: Connection) -> dict[str, str]:
    """Return the address that each contributor has bound last; those who have bound none are not there."""
    query = select(address_table).order_by(address_table.c.log_index)
    return {row.contributor: row.address for row in connection.execute(query)}


def last_nonce(connection: Connection, contributor: str) -> int | None:
    """Return the nonce of a contributor's newest binding, or None."""
    query = select(func.max(address_table.c.nonce)).where(address_table.c.contributor == contributor)
    last: int | None = connection.scalar(query)
    return last


def _pay(
    books: Books,
    transaction: Transaction,
    period: str,
    contributor: str,
    amount_nano: int,
    terms: SettlementTerms,
    address: str | None,
) -> None:
    postings = transfer(contributor_account(contributor), PAYOUTS, amount_nano)
    data: dict[str, JSON] = {
        "contributor": contributor,
        "period": period,
        "method": terms.method,
        "amount_nano": str(amount_nano),
        "address": address,
        "distributor": terms.distributor,
    }
    appended = books.log(
        transaction, "payout.recorded", f"{contributor}:{period}", contributor, data, postings, new=True
    )
    transaction.post(lines_of(transaction, appended, postings, in_role("payout", postings)))
    row = {
        "log_index": appended.log_index,
        "contributor": contributor,
        "period": period,
        "method": terms.method,
        "address": address,
        "distributor": terms.distributor,
        "amount_nano": amount_nano,
    }
    transaction.defer(_ADD_PAYOUT, row)


def _check_turn(transaction: Transaction, period: str, now: str) -> None:
    """Raise PeriodError unless the period is over and those before it are closed, from the month of the first entry."""
    last_closed = transaction.last_closed()
    if last_closed is None and period != (first := due_period(transaction)):
        raise PeriodError(f"{period} is closed out of turn: the log begins in {first}")
    check_closing(period, now, last_closed)


def _paid_after(connection: Connection, period: str) -> dict[str, int]:
    """Return what was paid after a period, at most 0, by account."""
    columns = account_period_table.c
    query = select(columns.account, func.sum(columns.paid_nano).label("paid")).where(columns.period > period)
    return {row.account: int(row.paid) for row in connection.execute(query.group_by(columns.account))}


def _tree(connection: Connection, distributor: str | None, token_decimals: int, before: int) -> PayoutTree | None:
    """Return the tree over all that is claimed from a distributor by entries before this log index."""
    columns = payout_table.c
    if distributor is None:
        return None
    query = (
        select(columns.address, func.sum(columns.amount_nano).label("amount"))
        .where(columns.distributor == distributor, columns.log_index < before)
        .group_by(columns.address)
    )
    due = {row.address: token_units(int(row.amount), token_decimals) for row in connection.execute(query)}
    return PayoutTree(amounts=due) if due else None


def carried_forward(connection: Connection, period: str) -> Iterator[tuple[str, int]]:
    """Yield the contributors who were not paid for a period, and what stood on their accounts at its end."""
    paid = {payout.contributor for payout in payouts(connection, period)}
    for head in summaries(connection, period):
        if head.contributor not in paid and head.closing_nano > 0:
            yield head.contributor, head.closing_nano

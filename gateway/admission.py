"""The gate: callers take turns, and what a request may cost is reserved, under budgets, once for each idempotency key.

It knows the requests that this process is still answering, which nobody may void for it.
"""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from gateway.auth import Principal
from gateway.fairness import Tenant, Turn, Turns
from gateway.idempotency import Claim, in_progress
from gateway.transactions import Transactions
from metering import Books, CommitError, Expected, Intent, Transaction


def touched(intent: Intent, *accounts: str) -> Expected:
    """The rows that ending a request looks at, and those of further accounts."""
    return Expected(accounts=(intent.account, *accounts), requests=(intent.request_id,))


class Admission:
    """Admits requests and ends those that come to nothing."""

    def __init__(self, transactions: Transactions, books: Books, turns: Turns) -> None:
        self._transactions = transactions
        self._books = books
        self._turns = turns
        self._answering: dict[str, Claim | None] = {}
        self._held: dict[str, Turn] = {}
        self._claimed: set[tuple[str, str]] = set()

    async def admit(
        self,
        account: str,
        request_id: str,
        *,
        maximum_nano: int,
        maximum_tokens: int,
        key: Principal | None,
        claim: Claim | None,
    ) -> Intent:
        """Admit a request when its turn comes; it holds the turn and counts as being answered until `ended` or `void`.

        key: the API key whose turn it takes and whose budget it draws on; without one, turns are the account's.
        Raises TooBusyError, InsufficientCredit, BudgetExceeded, RequestInProgressError, or CommitError when the ledger
        is gone; nothing is reserved then.
        """
        key_id = None if key is None else key.key_id

        def work(transaction: Transaction) -> Intent:
            intent = self._books.admit(
                transaction, account, maximum_nano, request_id, key=key_id, maximum_tokens=maximum_tokens
            )
            if claim is not None:
                claim.take(transaction, request_id)
            return intent

        if claim is not None:
            if claim.place in self._claimed:
                raise in_progress()
            self._claimed.add(claim.place)
        self._answering[request_id] = claim
        tenant = key.tenant if key else Tenant(name=account)
        subjects = (account,) if key_id is None else (account, key_id)
        expected = Expected(accounts=(account,), requests=(request_id,), budgets=subjects)
        try:
            self._held[request_id] = await self._turns.take(tenant)
            return await self._transactions.commit("intent", work, expected)
        except BaseException as error:
            self.ended(request_id)
            if claim is not None and isinstance(error, CommitError) and isinstance(error.__cause__, IntegrityError):
                raise in_progress() from None  # another process claimed the key first
            raise

    async def void(self, intent: Intent, reason: str) -> None:
        """End an admitted request without a charge. Should that fail, the sweeper does it."""
        try:
            await self._transactions.commit("void", lambda t: self._books.void(t, intent, reason), touched(intent))
        finally:
            self.ended(intent.request_id)

    def ended(self, request_id: str) -> None:
        """Answer a request no longer: its turn is another's. May be said again."""
        if turn := self._held.pop(request_id, None):
            turn.give_back()
        claim = self._answering.pop(request_id, None)
        if claim is not None:
            self._claimed.discard(claim.place)

    def is_answering(self, request_id: str) -> bool:
        """Whether this process still answers a request; true from before it is in the database. Safe in any thread."""
        return request_id in self._answering

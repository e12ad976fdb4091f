"""Usage, price, split policy and double-entry postings."""

from ledger_client import SUSPENSE
from metering.books import Books
from metering.budgets import Budget, Draw
from metering.committer import Committer
from metering.corrections import supersede
from metering.earnings import Earnings, Grouping, Page, earnings, entries
from metering.errors import BudgetExceeded, CommitError, InsufficientCredit, IntentError, MeteringError
from metering.feedback import Rating, ratings, record_feedback
from metering.fsck import StoredBooks, fsck_books
from metering.policy import SplitPolicy
from metering.postings import (
    FUNDING,
    PAYOUTS,
    PLATFORM,
    RESIDUAL,
    Posting,
    balanced,
    base_account,
    caller_account,
    contributor_account,
)
from metering.pricing import Price
from metering.records import AttributedPlayer, AttributionRecord, EstimatorRun, UsageRecord
from metering.settlement import (
    Payout,
    Settlement,
    SettlementTerms,
    bind_address,
    carried_forward,
    closed_periods,
    due_period,
    last_nonce,
    payout_addresses,
    payouts,
    settle,
    settlement,
)
from metering.splits import AdapterTerms, DocumentTerms, PlayerShare, SplitLine, split
from metering.statements import Statement, cell, statement, summaries
from metering.store import (
    Balance,
    Intent,
    Line,
    RequestState,
    balance,
    balances,
    budgets,
    draws,
    forget_draws,
    open_intents,
    request_state,
)
from metering.tables import metadata
from metering.transaction import Expected, Transaction
from metering.usage import Usage

__all__ = [
    "FUNDING",
    "PAYOUTS",
    "PLATFORM",
    "RESIDUAL",
    "SUSPENSE",
    "AdapterTerms",
    "AttributedPlayer",
    "AttributionRecord",
    "Balance",
    "Books",
    "Budget",
    "BudgetExceeded",
    "CommitError",
    "Committer",
    "DocumentTerms",
    "Draw",
    "Earnings",
    "EstimatorRun",
    "Expected",
    "Grouping",
    "InsufficientCredit",
    "Intent",
    "IntentError",
    "Line",
    "MeteringError",
    "Page",
    "Payout",
    "PlayerShare",
    "Posting",
    "Price",
    "Rating",
    "RequestState",
    "Settlement",
    "SettlementTerms",
    "SplitLine",
    "SplitPolicy",
    "Statement",
    "StoredBooks",
    "Transaction",
    "Usage",
    "UsageRecord",
    "balance",
    "balanced",
    "balances",
    "base_account",
    "bind_address",
    "budgets",
    "caller_account",
    "carried_forward",
    "cell",
    "closed_periods",
    "contributor_account",
    "draws",
    "due_period",
    "earnings",
    "entries",
    "forget_draws",
    "fsck_books",
    "last_nonce",
    "metadata",
    "open_intents",
    "payout_addresses",
    "payouts",
    "ratings",
    "record_feedback",
    "request_state",
    "settle",
    "settlement",
    "split",
    "statement",
    "summaries",
    "supersede",
]

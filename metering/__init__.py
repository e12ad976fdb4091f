"""Usage, price, split policy and double-entry postings."""

from ledger_client import SUSPENSE
from metering.books import Books
from metering.budgets import Budget, Draw
from metering.committer import Committer
from metering.corrections import supersede
from metering.earnings import Earnings, Grouping, Page, earnings, entries
from metering.errors import BudgetExceeded, CommitError, InsufficientCredit, IntentError, MeteringError
from metering.feedback import Rating, ratings, record_feedback
from metering.fsck import fsck_books
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
from metering.splits import AdapterTerms, DocumentTerms, PlayerShare, SplitLine, split
from metering.statements import Statement, statement, summaries
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
    "PlayerShare",
    "Posting",
    "Price",
    "Rating",
    "RequestState",
    "SplitLine",
    "SplitPolicy",
    "Statement",
    "Transaction",
    "Usage",
    "UsageRecord",
    "balance",
    "balanced",
    "balances",
    "base_account",
    "budgets",
    "caller_account",
    "contributor_account",
    "draws",
    "earnings",
    "entries",
    "forget_draws",
    "fsck_books",
    "metadata",
    "open_intents",
    "ratings",
    "record_feedback",
    "request_state",
    "split",
    "statement",
    "summaries",
    "supersede",
]

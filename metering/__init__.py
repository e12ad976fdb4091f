"""Usage, price, split policy and double-entry postings."""

from ledger_client import SUSPENSE
from metering.books import Books
from metering.committer import Committer
from metering.errors import CommitError, InsufficientCredit, IntentError, MeteringError
from metering.fsck import fsck_books
from metering.policy import SplitPolicy
from metering.postings import (
    FUNDING,
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
from metering.statements import Earnings, Grouping, Page, Statement, earnings, entries, statement
from metering.store import Balance, Intent, Line, RequestState, balances, metadata, open_intents
from metering.usage import Usage

__all__ = [
    "FUNDING",
    "PLATFORM",
    "RESIDUAL",
    "SUSPENSE",
    "AdapterTerms",
    "AttributedPlayer",
    "AttributionRecord",
    "Balance",
    "Books",
    "CommitError",
    "Committer",
    "DocumentTerms",
    "Earnings",
    "EstimatorRun",
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
    "RequestState",
    "SplitLine",
    "SplitPolicy",
    "Statement",
    "Usage",
    "UsageRecord",
    "balanced",
    "balances",
    "base_account",
    "caller_account",
    "contributor_account",
    "earnings",
    "entries",
    "fsck_books",
    "metadata",
    "open_intents",
    "split",
    "statement",
]

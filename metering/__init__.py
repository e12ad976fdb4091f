"""Usage, price, split policy and double-entry postings."""

from ledger_client import SUSPENSE
from metering.errors import MeteringError
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
from metering.splits import AdapterTerms, DocumentTerms, PlayerShare, SplitLine, split
from metering.usage import Usage

__all__ = [
    "FUNDING",
    "PLATFORM",
    "RESIDUAL",
    "SUSPENSE",
    "AdapterTerms",
    "DocumentTerms",
    "MeteringError",
    "PlayerShare",
    "Posting",
    "Price",
    "SplitLine",
    "SplitPolicy",
    "Usage",
    "balanced",
    "base_account",
    "caller_account",
    "contributor_account",
    "split",
]

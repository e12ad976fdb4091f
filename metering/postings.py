"""Accounts and postings: the double entry.

A posting adds a signed amount to an account: credit above zero, debit below. An account's balance is its credits less
its debits. The postings of one log entry sum to zero, and so, therefore, do all balances.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger_client import SUSPENSE
from metering._checks import CONTRIBUTOR, LIMIT_NANO, NAME, check_known, check_text, check_whole
from metering.errors import MeteringError

FUNDING = "funding"  # where credit comes from; the only account that goes below zero
PAYOUTS = "payouts"  # what was sent to contributors, or stands ready for them to claim
PLATFORM = "platform"
RESIDUAL = "residual"  # the contributors' pool of answers that no contributor can be paid for

CONTRIBUTOR_PREFIX = "contributor:"

_EARNING_ACCOUNT = f"{PLATFORM}|{RESIDUAL}|{CONTRIBUTOR_PREFIX}{CONTRIBUTOR}|base:{NAME}"
_CALLER_ACCOUNT = "caller:[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ACCOUNT = f"{_EARNING_ACCOUNT}|{_CALLER_ACCOUNT}|{FUNDING}|{PAYOUTS}|{SUSPENSE}"


def contributor_account(contributor: str) -> str:
    """Return the account that a contributor is credited on."""
    check_text("contributor", contributor, CONTRIBUTOR)
    return f"{CONTRIBUTOR_PREFIX}{contributor}"


def base_account(base_model: str) -> str:
    """Return the account of a base model's contractual part."""
    check_text("base model", base_model, NAME)
    return f"base:{base_model}"


def caller_account(caller: str) -> str:
    """Return the account that holds a caller's credit."""
    account = f"caller:{caller}"
    check_caller_account(account)
    return account


def check_caller_account(account: str) -> None:
    """Refuse an account that cannot hold a caller's credit."""
    check_known("caller account", account, _CALLER_ACCOUNT)


def check_earning_account(account: str) -> None:
    """Refuse an account that a charge cannot be paid out to."""
    check_known("account", account, _EARNING_ACCOUNT)


@dataclass(frozen=True, kw_only=True)
class Posting:
    """One signed amount on one account, in nano-USD and never zero."""

    account: str
    amount_nano: int

    def __post_init__(self) -> None:
        check_known("account", self.account, _ACCOUNT)
        check_whole("amount_nano", self.amount_nano, minimum=-LIMIT_NANO)
        if self.amount_nano == 0:
            raise MeteringError(f"a posting on {self.account} moves nothing")


def balanced(postings: Iterable[Posting]) -> tuple[Posting, ...]:
    """Return the postings, or raise MeteringError when they do not sum to zero."""
    checked = tuple(postings)
    total_nano = sum(posting.amount_nano for posting in checked)
    if total_nano != 0:
        raise MeteringError(f"the postings of an entry must sum to zero, not to {total_nano}")
    return checked

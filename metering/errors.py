"""What can go wrong in this package, by whose fault it is."""


class MeteringError(ValueError):
    """A value that cannot be priced, split, posted or stated; the message says what to change."""


class InsufficientCredit(Exception):  # noqa: N818 - named after the state of the account, as callers of an API know it
    """The caller's credit, less what is already reserved, does not cover the most that a request may cost."""

    def __init__(self, *, account: str, available_nano: int, maximum_nano: int) -> None:
        super().__init__(f"{account} has {available_nano} nano-USD available, and the request may cost {maximum_nano}")
        self.account = account
        self.available_nano = available_nano
        self.maximum_nano = maximum_nano


class IntentError(RuntimeError):
    """The request was never admitted, or has already ended in another way."""


class CommitError(RuntimeError):
    """The database transaction did not commit, or its reply was lost; repeating the work is safe."""


class BudgetExceeded(Exception):  # noqa: N818
    """A request would pass a budget. limit: the name of the limit. retry_after_s: when it is worth trying again."""

    def __init__(self, message: str, *, limit: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s

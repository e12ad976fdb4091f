"""The rule that turns a charge and shares into amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ledger_client import JSON
from metering._checks import NAME, WHOLE_PPM, check_text, check_whole
from metering.errors import MeteringError
from metering.postings import RESIDUAL, check_earning_account


@dataclass(frozen=True, kw_only=True)
class SplitPolicy:
    """One version of a split policy; all parts in ppm.

    fixed_ppm: what of every charge goes to which account, before anyone else. The rest is the contributors' pool.
    residual: the account that takes the pool when no contributor can be paid from it.
    developer_ppm: what of an adapter's amount goes to its developer; the rest goes to its datasets, where it has any.
    """

    name: str
    version: int
    fixed_ppm: Mapping[str, int]
    residual: str = RESIDUAL
    developer_ppm: int = WHOLE_PPM

    def __post_init__(self) -> None:
        check_text("policy name", self.name, NAME)
        check_whole("policy version", self.version, minimum=1)
        for account, ppm in self.fixed_ppm.items():
            check_earning_account(account)
            check_whole(f"the fixed part of {account}", ppm, maximum=WHOLE_PPM)
        if sum(self.fixed_ppm.values()) > WHOLE_PPM:
            raise MeteringError(f"the fixed parts of policy {self.name} exceed the whole of {WHOLE_PPM} ppm")
        check_earning_account(self.residual)
        check_whole("developer_ppm", self.developer_ppm, maximum=WHOLE_PPM)
        object.__setattr__(self, "fixed_ppm", MappingProxyType(dict(self.fixed_ppm)))

    @property
    def pool_ppm(self) -> int:
        """What of every charge is for the contributors."""
        return WHOLE_PPM - sum(self.fixed_ppm.values())

    def data(self) -> dict[str, JSON]:
        """Return the data of a `policy.published` entry."""
        return {
            "policy": self.name,
            "version": self.version,
            "fixed_ppm": dict(self.fixed_ppm),
            "pool_ppm": self.pool_ppm,
            "residual": self.residual,
            "developer_ppm": self.developer_ppm,
        }

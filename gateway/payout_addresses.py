"""Where a contributor is paid: the typed data that its address signs, and the claim that it can send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from gateway.settings import ChainSection, Settings
from ledger_client import Log, SettlementError
from metering import Books, Transaction, bind_address, closed_periods, last_nonce, payout_addresses, settlement

if TYPE_CHECKING:
    from ledger_client.binding import Binding


class NoChainError(LookupError):
    """The gateway pays by list: its configuration names no contract."""


@dataclass(frozen=True, kw_only=True)
class PayoutAddresses:
    """The addresses that a gateway's contributors are paid at, on the chain that its settings name."""

    origin: str
    chain: ChainSection

    @classmethod
    def of(cls, settings: Settings) -> PayoutAddresses:
        """Read them off the settings."""
        return cls(origin=settings.log.origin, chain=settings.chain)

    def next_binding(self, connection: sa.Connection, contributor: str, address: str) -> Binding:
        """What a contributor signs to be paid at an address from now on. Raises AddressError, NoChainError."""
        last = last_nonce(connection, contributor)
        return self._binding(contributor, address, 0 if last is None else last + 1)

    def bind(
        self,
        books: Books,
        transaction: Transaction,
        contributor: str,
        address: str,
        *,
        nonce: int,
        signature: str,
    ) -> int:
        """Log that a contributor is paid at an address and return the log index; a repeat returns the same.

        Raises AddressError when the address did not sign exactly this, MeteringError when the nonce does not rise.
        """
        binding = self._binding(contributor, address, nonce)
        binding.verify(signature)
        return bind_address(
            books,
            transaction,
            contributor,
            binding.account,
            nonce=binding.nonce,
            chain_id=binding.chain_id,
            contract=binding.contract,
            signature=signature,
        )

    def claim(self, connection: sa.Connection, log: Log, contributor: str, epoch: int | None = None) -> dict[str, Any]:
        """The proof that a contributor's address shows to the contract, for an epoch or the newest settled one.

        Raises SettlementError when there is nothing to claim.
        """
        address = payout_addresses(connection).get(contributor)
        if address is None:
            raise SettlementError(f"{contributor} has bound no payout address")
        closed = closed_periods(connection, self.chain.distributor)
        if not closed or not 1 <= (epoch or len(closed)) <= len(closed):
            raise SettlementError(f"{len(closed)} epochs are settled; there is no epoch {epoch or 1}")
        period = closed[(epoch or len(closed)) - 1]
        done = settlement(connection, period, lambda index: log.entry(connection, index))
        if done is None or done.claims.tree is None:
            raise SettlementError(f"nothing was settled on chain for {period} or before")
        found = done.claims.tree.claim(address)
        return {
            "contributor": contributor,
            "account": found.account,
            "period": period,
            "epoch": done.claims.epoch,
            "cumulative": str(found.cumulative),
            "root": f"0x{found.root.hex()}",
            "proof": [f"0x{node.hex()}" for node in found.proof],
            "chain_id": self.chain.chain_id,
            "contract": self.chain.contract,
        }

    def _binding(self, contributor: str, address: str, nonce: int) -> Binding:
        if self.chain.chain_id is None or self.chain.contract is None:
            raise NoChainError(
                "[chain] names no contract, so contributors are paid by list; see `tributary payouts deploy`"
            )
        try:
            from ledger_client.binding import Binding  # noqa: PLC0415 - needs the extra `chain`
        except ImportError as error:
            raise NoChainError("signatures are checked with the extra `chain`, which is not installed") from error
        return Binding(
            contributor=contributor,
            log=self.origin,
            account=address,
            nonce=nonce,
            chain_id=self.chain.chain_id,
            contract=self.chain.contract,
        )

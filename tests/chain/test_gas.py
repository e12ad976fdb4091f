"""What each transaction costs, on a real chain. `python -m pytest tests/chain/test_gas.py -s` prints the table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledger_client import leaf_hash
from ledger_client.addresses import to_address
from ledger_client.chain import Anchor, Sent
from ledger_client.settlement import PayoutTree

from .kit import HOUR_S, Site

ACCOUNTS = [to_address(number.to_bytes(20)) for number in range(1, 1001)]

MOST_GAS = {
    "deploy": 1_520_000,
    "post an epoch": 111_000,
    "revoke an epoch": 33_000,
    "anchor the log": 54_000,
    "claim, the first ever": 96_000,
    "claim, an account's first, 1,000 accounts": 104_000,
    "claim, an account's second, 1,000 accounts": 69_000,
}


@pytest.fixture
def measured(site: Site) -> dict[str, int]:
    """Gas used, by what it was used for."""
    distributor, used = site.distributor, {}

    def gas(name: str, call: Callable[[], Sent | None]) -> None:
        sent = call()
        assert sent is not None
        used[name] = sent.gas_used

    chain = distributor.chain
    deployed = chain.web3.eth.get_block(chain.web3.eth.block_number, full_transactions=True)["transactions"][0]
    used["deploy"] = chain.web3.eth.get_transaction_receipt(deployed["hash"])["gasUsed"]  # type: ignore[index]
    site.fund(10_000_000)
    alone, first, second = (
        PayoutTree(amounts=dict.fromkeys(accounts, amount))
        for accounts, amount in ((ACCOUNTS[:1], 1), (ACCOUNTS, 2), (ACCOUNTS, 3))
    )
    distributor.post(site.epoch(alone))
    site.anvil.sleep(HOUR_S)
    gas("claim, the first ever", lambda: distributor.claim(alone.claim(ACCOUNTS[0])))
    gas("post an epoch", lambda: distributor.post(site.epoch(first)))
    gas("revoke an epoch", lambda: distributor.revoke(2))
    distributor.post(site.epoch(first))
    site.anvil.sleep(HOUR_S)
    gas("claim, an account's first, 1,000 accounts", lambda: distributor.claim(first.claim(ACCOUNTS[499])))
    distributor.post(site.epoch(second))
    site.anvil.sleep(HOUR_S)
    gas("claim, an account's second, 1,000 accounts", lambda: distributor.claim(second.claim(ACCOUNTS[499])))
    gas("anchor the log", lambda: distributor.anchor(Anchor(size=99, root=leaf_hash(b""))))
    return used


def test_what_transactions_cost(measured: dict[str, int]) -> None:
    assert measured.keys() == MOST_GAS.keys()
    for name, most in MOST_GAS.items():
        print(f"{name:<45} {measured[name]:>9,} gas")  # noqa: T201  the table that the docstring promises
        assert measured[name] <= most, name

"""Entries for tests, as small as their types allow."""

from __future__ import annotations

from collections.abc import Mapping

from ledger_client import JSON, Entry, entry_id

SOURCE = "example.com/log"
TIME = "2025-01-31T23:59:59Z"


def fact(kind: str, subject: str, data: Mapping[str, JSON]) -> Entry:
    return Entry(
        id=entry_id(SOURCE, f"{kind}:{subject}"), source=SOURCE, type=kind, time=TIME, subject=subject, data=data
    )


def registered(number: int, *, name: str = "someone") -> Entry:
    return fact("contributor.registered", f"c{number}", {"contributor": f"c{number}", "name": name})


def lines(**amounts: int) -> list[dict[str, str]]:
    """Postings or split lines; `_` in a keyword stands for the colon of an account."""
    return [
        {"account": account.replace("_", ":", 1), "amount_nano": str(amount)} for account, amount in amounts.items()
    ]


def priced(served_model: str = "harbour") -> Entry:
    return fact("price.published", served_model, {"served_model": served_model, "prompt_nano_per_token": "100"})


def ruled(policy: str = "even") -> Entry:
    return fact("policy.published", policy, {"policy": policy, "version": "1"})


def adapted(adapter: str = "concise", developer: str = "dev") -> Entry:
    return fact("adapter.registered", adapter, {"adapter": adapter, "developer": developer})


def documented(document: str = "doc", owner: str = "ada") -> Entry:
    return fact("document.registered", document, {"document": document, "owner": owner})


def used(seq: int, charge: int = 1000, **changes: JSON) -> Entry:
    data: dict[str, JSON] = {
        "gateway": "g1",
        "gateway_seq": seq,
        "request_id": f"req_{seq}",
        "served_model": "harbour",
        "price_index": 0,
        "charge_nano": str(charge),
        "postings": lines(caller_ann=-charge, suspense=charge) if charge else [],
    }
    return fact("usage.recorded", f"req_{seq}", data | changes)


def voided(seq: int, **changes: JSON) -> Entry:
    data: dict[str, JSON] = {"gateway": "g1", "gateway_seq": seq, "request_id": f"req_{seq}", "reason": "engine failed"}
    return fact("request.voided", f"req_{seq}", data | changes)


def attributed(seq: int, usage_index: int, charge: int = 1000, **changes: JSON) -> Entry:
    data: dict[str, JSON] = {
        "request_id": f"req_{seq}",
        "usage_index": usage_index,
        "policy_index": 1,
        "adapter_index": None,
        "document_indexes": {},
        "players": [],
        "charge_nano": str(charge),
        "split": lines(contributor_ada=charge - charge // 4, platform=charge // 4),
        "postings": lines(suspense=-charge, contributor_ada=charge - charge // 4, platform=charge // 4),
    }
    return fact("answer.attributed", f"req_{seq}", data | changes)


def granted(account: str, amount: int) -> Entry:
    postings = [{"account": account, "amount_nano": str(amount)}, {"account": "funding", "amount_nano": str(-amount)}]
    data: dict[str, JSON] = {"account": account, "amount_nano": str(amount), "reason": "prepaid", "postings": postings}
    return fact("credit.granted", account, data)

"""How fast a log is checked, whether memory stays flat, and how fast receipts are verified.

Synthetic logs of any length: registrations, then requests that are charged and attributed or voided, as the gateway
writes them, sealed a batch at a time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ledger_client import (
    JSON,
    Checkpoint,
    Entry,
    GrowingTree,
    Receipt,
    Signer,
    Verifier,
    entry_id,
    fsck,
    inclusion_path,
    leaf_hash,
    verify_receipt,
)

ORIGIN = "bench.example/log"
_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_DOCUMENTS = 8
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def synthetic(count: int) -> Iterator[bytes]:
    """Yield the entries of a sound log: registrations, and then for each request a usage and its attribution.

    Every twentieth request is voided, every fiftieth waits for its attribution still.
    """
    places = 0

    def entry(kind: str, subject: str, data: dict[str, JSON]) -> bytes:
        nonlocal places
        at = (_BEGIN + timedelta(seconds=places)).isoformat().replace("+00:00", "Z")
        places += 1
        identity = entry_id("metering", f"{kind}:{subject}")
        return Entry(id=identity, source="metering", type=kind, time=at, subject=subject, data=data).encode()

    registered: dict[str, JSON] = {}
    yield entry("price.published", "harbour", {"served_model": "harbour", "prompt_nano_per_token": "100"})
    yield entry("policy.published", "even", {"policy": "even", "version": "1"})
    yield entry("adapter.registered", "concise", {"adapter": "concise", "developer": "dev-0"})
    for number in range(_DOCUMENTS):
        registered[f"doc-{number}"] = places
        yield entry("document.registered", f"doc-{number}", {"document": f"doc-{number}", "owner": f"owner-{number}"})
    sequence = 0
    while places < count:
        request = "req_" + "".join(_ALPHABET[(sequence >> 5 * place) & 31] for place in range(26))
        numbered: dict[str, JSON] = {"gateway": "gw-1", "gateway_seq": sequence, "request_id": request}
        sequence += 1
        if sequence % 20 == 0:
            yield entry("request.voided", request, {**numbered, "reason": "the engine failed"})
            continue
        charge = 100_000 + sequence % 7919
        usage_index = places
        yield entry("usage.recorded", request, {**numbered, **_usage(charge, sequence)})
        if sequence % 50 and places < count:
            yield entry("answer.attributed", request, _attribution(request, charge, usage_index, sequence, registered))


def _usage(charge: int, sequence: int) -> dict[str, JSON]:
    return {
        "served_model": "harbour",
        "base_model": "smollm2-135m-instruct",
        "adapter": "concise",
        "prompt_tokens": 700 + sequence % 100,
        "completion_tokens": 90,
        "finish_reason": "stop",
        "price_index": 0,
        "charge_nano": str(charge),
        "prompt_digest": f"{sequence:064x}",
        "answer_digest": f"{sequence * 7:064x}",
        "postings": _lines({f"caller:caller-{sequence % 100}": -charge, "suspense": charge}),
    }


def _attribution(
    request: str, charge: int, usage_index: int, sequence: int, registered: dict[str, JSON]
) -> dict[str, JSON]:
    documents = [(sequence + step) % _DOCUMENTS for step in range(3)]
    amounts = {"platform": charge // 10, "base:smollm2-135m-instruct": charge // 5, "contributor:dev-0": charge // 7}
    amounts |= {f"contributor:owner-{number}": charge // 9 for number in documents}
    amounts["platform"] += charge - sum(amounts.values())
    players: list[JSON] = [
        {
            "kind": kind,
            "id": name,
            "contributor": contributor,
            "score_nats": round(3.25 + sequence % 97 / 7, 6),
            "stderr_nats": 0.0,
            "share_ppm": 250_000,
        }
        for kind, name, contributor in [
            ("adapter", "concise", "dev-0"),
            *(("document", f"doc-{number}", f"owner-{number}") for number in documents),
        ]
    ]
    return {
        "request_id": request,
        "policy_index": 1,
        "adapter_index": 2,
        "document_indexes": {f"doc-{number}": registered[f"doc-{number}"] for number in documents},
        "estimator": {
            "name": "two-end",
            "version": "1",
            "evaluations": 10,
            "tokens_scored": 2210,
            "residual_nats": 0.4,
        },
        "surplus_nats": 34.125,
        "players": players,
        "coalitions": [[[], -41.5], [[0], -30.25], [[0, 1, 2, 3], round(-7.0 - sequence % 31 / 3, 6)]],
        "split": [{**line, "role": "owner", "kind": None, "item": None} for line in _lines(amounts)],
        "reason": None,
        "scores_digest": f"{sequence * 13:064x}",
        "usage_index": usage_index,
        "charge_nano": str(charge),
        "postings": _lines({"suspense": -charge, **amounts}),
    }


def _lines(amounts: dict[str, int]) -> list[dict[str, JSON]]:
    return [{"account": account, "amount_nano": str(amount)} for account, amount in amounts.items()]


def write_log(folder: Path, count: int, batch: int) -> None:
    """Write a synthetic log to files: entries after their length, and the notes of a checkpoint a batch."""
    signer = Signer.generate(ORIGIN)
    tree = GrowingTree()
    with (folder / "entries").open("wb") as entries, (folder / "notes").open("w", encoding="utf-8") as notes:
        for raw in synthetic(count):
            entries.write(len(raw).to_bytes(2, "big") + raw)
            tree.append(leaf_hash(raw))
            if tree.size % batch == 0 or tree.size == count:
                note = signer.sign(Checkpoint(origin=ORIGIN, size=tree.size, root=tree.root()))
                notes.write(json.dumps(note) + "\n")
    (folder / "key").write_text(signer.verifier_key, encoding="utf-8")


def read_entries(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (log index, bytes) of a log that `write_log` wrote."""
    with (folder / "entries").open("rb") as file:
        log_index = 0
        while length := file.read(2):
            yield log_index, file.read(int.from_bytes(length, "big"))
            log_index += 1


def check_once(folder: Path, processes: int) -> dict[str, float]:
    """Check a written log; returns entries a second, CPU time an entry, and the most memory of any process in MiB."""
    verifier = Verifier.parse((folder / "key").read_text(encoding="utf-8"))
    started = time.perf_counter()
    with (folder / "notes").open(encoding="utf-8") as notes:
        findings = fsck(read_entries(folder), map(json.loads, notes), None, verifier, processes=processes)
    elapsed_s = time.perf_counter() - started
    assert findings == [], findings[:3]
    own, helpers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    count = sum(1 for _ in read_entries(folder))
    cpu_s = own.ru_utime + own.ru_stime + helpers.ru_utime + helpers.ru_stime
    return {
        "entries_s": count / elapsed_s,
        "cpu_us_entry": cpu_s / count * 1e6,
        "rss_mib": max(own.ru_maxrss, helpers.ru_maxrss) / 1024,
    }


def check_alone(count: int, *, batch: int = 32, processes: int = 1) -> dict[str, float]:
    """Write a log and check it in a process of its own, so that its memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), count, batch)
        command = [sys.executable, "-m", "benchmarks.ledger.fsck", folder, str(processes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own program
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def receipts_per_second(count: int = 4096, *, sample: int = 2000) -> float:
    """Verify receipts of a log of this many entries, one after the other; returns how many a second."""
    signer = Signer.generate(ORIGIN)
    raws = list(synthetic(count))
    levels = [[leaf_hash(raw) for raw in raws]]
    tree = GrowingTree()
    for leaf in levels[0]:
        tree.append(leaf)
    note = signer.sign(Checkpoint(origin=ORIGIN, size=count, root=tree.root()))

    def hash_at(level: int, index: int) -> bytes:
        part = GrowingTree()
        for leaf in levels[0][index << level : (index + 1) << level]:
            part.append(leaf)
        return part.root()

    step = max(count // 64, 1)
    receipts = [
        Receipt(index=index, path=tuple(inclusion_path(index, count, hash_at)), note=note, entry=raws[index]).format()
        for index in range(0, count, step)
    ]
    started = time.perf_counter()
    for number in range(sample):
        assert verify_receipt(receipts[number % len(receipts)], signer.verifier).ok
    return sample / (time.perf_counter() - started)


def measure(entries: int = 200_000) -> dict[str, float]:
    """Print the table; returns the figures of bench-ledger that this file measures. entries: of the longest log."""
    lengths = {"small": (entries // 10, 32), "large": (entries, 32), "lone": (entries // 5, 2)}
    print(f"{'log':34}{'entries/s':>12}{'CPU µs':>12}{'peak MiB':>12}")
    checked = {}
    for name, (count, batch) in lengths.items():
        checked[name] = figures = check_alone(count, batch=batch)
        print(
            f"{f'{count:,} entries, {batch} a checkpoint':34}{figures['entries_s']:12,.0f}"
            f"{figures['cpu_us_entry']:12.1f}{figures['rss_mib']:12.1f}",
            flush=True,
        )
    receipts_s = receipts_per_second(min(entries, 4096), sample=min(entries, 2000))
    print(f"receipts verified a second: {receipts_s:,.0f}")
    return {
        "fsck_entries_s": round(checked["large"]["entries_s"]),
        "fsck_memory_growth": round(checked["large"]["rss_mib"] / checked["small"]["rss_mib"], 3),
        "receipts_s": round(receipts_s),
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(check_once(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        print("RESULT " + json.dumps(measure()))

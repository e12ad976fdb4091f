from __future__ import annotations

import base64
import re
import time

import pytest

from gateway import identifiers
from gateway.identifiers import new_id, new_request_id


def bits(made: str) -> int:
    return int.from_bytes(base64.b32decode(made.partition("_")[2].upper() + "======"))


def test_ids_are_random_bits_in_base_32() -> None:
    made = {new_id("key") for _ in range(5000)}
    assert len(made) == 5000
    assert all(re.fullmatch("key_[a-z2-7]{26}", one) for one in made)
    ones = sum(bits(one).bit_count() for one in made)
    assert abs(ones / (128 * 5000) - 0.5) < 0.005  # seven standard deviations


def test_random_bits_are_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []

    def urandom(size: int) -> bytes:
        drawn.append(len(drawn).to_bytes(1) * size)
        return drawn[-1]

    monkeypatch.setattr(identifiers, "_drawn", [])
    monkeypatch.setattr(identifiers.os, "urandom", urandom)
    per_draw = 128
    made = [bits(new_id("key")) & 0xFF for _ in range(3 * per_draw)]
    assert made == [number for number in range(3) for _ in range(per_draw)]


def test_a_request_id_begins_with_its_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = [new_request_id() for _ in range(500)]
    after_ms = time.time_ns() // 1_000_000
    assert all(re.fullmatch("req_[a-z2-7]{26}", one) for one in made)
    times_ms = [bits(one) >> 80 for one in made]
    assert before_ms <= times_ms[0] <= times_ms[-1] <= after_ms
    assert times_ms == sorted(times_ms)
    assert len({bits(one) & (1 << 80) - 1 for one in made}) == 500

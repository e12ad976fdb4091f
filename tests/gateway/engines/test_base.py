from __future__ import annotations

import pytest

from gateway.engines import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("temperature", 2.1), ("temperature", float("nan")), ("top_p", 0),
     ("top_p", 1.1), ("stop", ("",))],
)  # fmt: skip
def test_sampling_outside_its_range_is_refused_by_name(field: str, value: object) -> None:
    arguments: dict[str, object] = {"max_tokens": 1, field: value}
    with pytest.raises(ValueError, match=field):
        SamplingParams(**arguments)  # type: ignore[arg-type]

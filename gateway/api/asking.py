"""What the routes that generate have in common: parts of their bodies, and how their streams are written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from gateway.api.requests import AttributionOptions
from gateway.api.wire import Last
from gateway.catalogue import ServedModel
from gateway.engines import Delta
from gateway.errors import BadRequestError
from gateway.state import Gateway


def searched(model: ServedModel, corpora: Sequence[str] | None) -> tuple[str, ...]:
    """The corpora to search: those that the caller names, or all of the model's. Raises BadRequestError."""
    if unknown := set(corpora or ()) - set(model.corpora):
        known = ", ".join(model.corpora) or "none"
        raise BadRequestError(f"model {model.name!r} has no corpus {min(unknown)!r}; its corpora: {known}", "corpora")
    return model.corpora if corpora is None else tuple(corpora)


def mode_of(gateway: Gateway, attribution: AttributionOptions | None) -> Literal["async", "inline"]:
    """When the answer is attributed: as the caller says, or as is configured."""
    return (attribution and attribution.mode) or gateway.settings.attribution.mode


async def events(
    first: Sequence[Delta],
    rest: AsyncIterator[Sequence[Delta]],
    *,
    begun: bytes = b"",
    write: Callable[[Delta], bytes],
    end: Callable[[], bytes],
    fail: Callable[[Exception], bytes],
) -> AsyncIterator[bytes]:
    """A stream: text as it comes; what ended it, usage and attribution only once they are committed.

    begun: what comes before all. write: what a delta lets go now. end, fail: what comes last, one or the other.
    """
    if begun:
        yield begun
    try:
        if ready := b"".join(map(write, first)):
            yield ready
        async for piece in rest:
            if ready := b"".join(map(write, piece)):
                yield ready
    except Exception as error:
        yield Last(fail(error))
    else:
        yield Last(end())

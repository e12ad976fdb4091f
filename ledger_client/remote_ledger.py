"""A ledger elsewhere, over HTTP."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import httpx

from ledger_client.batches import MAX_ACCEPTED_BYTES, Accepted, AcceptedError, Batch, BatchFault, BatchRefused
from ledger_client.draft import NotInLog
from ledger_client.forms import from_decimal
from ledger_client.ledger import LedgerUnavailable

TIMEOUT_S = 60.0
MAX_REPLY_BYTES = 1 << 18  # a receipt may be as long as that
NOT_HELD = "not_held"  # beside the names of `BatchFault`, what a refusal can begin with

_LONGEST_WAIT_S = 3600
_REFUSED = re.compile(r"([a-z_]{1,32})(?: (0|[1-9][0-9]{0,18}))?\n([^\n]*)\n")


def format_refusal(code: str, message: str, size: int | None = None) -> str:
    """Return the body of a refusal. code: NOT_HELD, or the name of a fault in lower case."""
    return f"{code}{'' if size is None else f' {size}'}\n{' '.join(message.split())}\n"


class RemoteLedger:
    """A `tributary ledger serve`, as a log reaches it. url: where its paths begin. The client is its owner's to close.

    timeout_s: for one request, from its start to the last byte of its reply. Believes nothing: see `verify_accepted`.
    """

    def __init__(self, url: str, http: httpx.AsyncClient, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._http = http
        self._timeout_s = timeout_s

    async def accept(self, batch: Batch) -> Accepted:
        """See `Ledger`."""
        text = await self._ask("POST", "/ledger/batches", batch.encode())
        try:
            return Accepted.parse(text)
        except AcceptedError as error:
            raise LedgerUnavailable(f"{self._url} answered with what is no acceptance: {error}") from error

    async def size(self, origin: str) -> int:
        """See `Ledger`."""
        text = await self._ask("GET", f"/ledger/sources/{quote(origin, safe='')}")
        try:
            return from_decimal(text.removesuffix("\n"))
        except ValueError as error:
            raise LedgerUnavailable(f"{self._url} answered with what is no size: {error}") from error

    async def receipt(self, origin: str, log_index: int) -> str:
        """See `Ledger`."""
        return await self._ask("GET", f"/ledger/receipts/{quote(origin, safe='')}/{log_index}")

    async def _ask(self, method: str, path: str, content: bytes | None = None) -> str:
        # A compressed reply could be small here and large once it is read.
        headers = {"content-type": "application/octet-stream", "accept-encoding": "identity"}
        reply = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, self._url + path, content=content, headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    reply += chunk
                    if len(reply) > (MAX_ACCEPTED_BYTES if method == "POST" else MAX_REPLY_BYTES):
                        raise LedgerUnavailable(f"{self._url} answers without an end")
            text = reply.decode("utf-8")
        except TimeoutError as error:
            raise LedgerUnavailable(f"{self._url} did not answer within {self._timeout_s} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LedgerUnavailable(f"{self._url} cannot be reached: {error or type(error).__name__}") from error
        except UnicodeDecodeError as error:
            raise LedgerUnavailable(f"{self._url} answered with bytes that are no text") from error
        if response.status_code == 200:
            return text
        raise self._refusal(response, text)

    def _refusal(self, response: httpx.Response, text: str) -> Exception:
        """Read a refusal. One that is not in a ledger's own words is by something between, and says only "not now"."""
        if match := _REFUSED.fullmatch(text):
            code, size, message = match.groups()
            if code == NOT_HELD:
                return NotInLog(message)
            if code.upper() in BatchFault.__members__:
                fault = BatchFault[code.upper()]
                return BatchRefused(fault, message, None if size is None else int(size))
        told = " ".join(text.split())[:200]
        message = f"{self._url} answered {response.status_code}: {told}"
        return LedgerUnavailable(message, _retry_after_s(response.headers.get("retry-after", "")))


def _retry_after_s(header: str) -> float | None:
    """Read the seconds that a reply asks to wait; a date there is ignored."""
    return min(float(header), _LONGEST_WAIT_S) if re.fullmatch("[0-9]{1,9}", header) else None

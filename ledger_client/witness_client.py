"""A log's side of c2sp.org/tlog-witness: asks a witness to cosign, and believes nothing that comes back unchecked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import httpx

from ledger_client.checkpoint import CheckpointError, Note
from ledger_client.cosignature import Cosignature, WitnessVerifier
from ledger_client.forms import from_decimal
from ledger_client.witness import Submission

Prove: TypeAlias = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""(old size, new size) → the consistency proof between the two trees."""

TIMEOUT_S = 10.0
MAX_REPLY_BYTES = 2**14
SIZE_TYPE = "text/x.tlog.size"

_ATTEMPTS = 5  # one to learn the size, one to use it, more where other submitters of the log come between


class WitnessError(Exception):
    """A witness gave no cosignature that holds; the message says why."""


class WitnessAhead(WitnessError):  # noqa: N818 - errors here say what is so
    """A witness has cosigned a larger tree of this log, of `size` entries, than the one it was asked about.

    Another process of the log may have asked it; where there is none, the log has lost entries that it had published.
    """

    def __init__(self, name: str, size: int, asked: int) -> None:
        super().__init__(f"{name} has cosigned a tree of {size} entries, and was asked about one of {asked}")
        self.size = size


class WitnessClient:
    """One witness, as one log reaches it.

    url: the submission prefix. size: of the checkpoint of ours that it cosigned last, as far as is known; the witness
    corrects it. timeout_s: for one request, from its start to the last byte of its reply.
    """

    def __init__(
        self,
        url: str,
        verifier: WitnessVerifier,
        http: httpx.AsyncClient,
        *,
        size: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.verifier = verifier
        self.size = size
        self._address = f"{url.rstrip('/')}/add-checkpoint"
        self._http = http
        self._timeout_s = timeout_s

    async def cosign(self, note: str, size: int, prove: Prove) -> Cosignature:
        """Return the witness's cosignature of a signed checkpoint of this size. Raises WitnessError."""
        for _ in range(_ATTEMPTS):
            if self.size > size:
                raise WitnessAhead(self.verifier.name, self.size, size)
            proof = await prove(self.size, size)
            submission = Submission(old_size=self.size, proof=tuple(proof), note=note)
            status, kind, reply = await self._post(submission.format())
            if status == 200:
                cosignature = self._checked(note, reply)
                self.size = size
                return cosignature
            if status != 409 or kind != SIZE_TYPE:
                raise WitnessError(f"{self.verifier.name} answered {status}: {' '.join(reply.split())[:200]!r}")
            self.size = self._corrected(reply, size)
        raise WitnessError(f"{self.verifier.name} named another size each of {_ATTEMPTS} times")

    async def _post(self, body: str) -> tuple[int, str, str]:
        """Return status, content type and text of the reply. Raises WitnessError."""
        # A compressed reply could be small here and large once it is read.
        headers = {"content-type": "text/plain; charset=utf-8", "accept-encoding": "identity"}
        reply = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("POST", self._address, content=body.encode(), headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    reply += chunk
                    if len(reply) > MAX_REPLY_BYTES:
                        raise WitnessError(f"{self.verifier.name} answered with more than {MAX_REPLY_BYTES} bytes")
            return response.status_code, response.headers.get("content-type", ""), reply.decode("utf-8")
        except TimeoutError as error:
            raise WitnessError(f"{self.verifier.name} did not answer within {self._timeout_s} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WitnessError(f"{self.verifier.name} cannot be reached: {error or type(error).__name__}") from error
        except UnicodeDecodeError as error:
            raise WitnessError(f"{self.verifier.name} answered with bytes that are no text") from error

    def _corrected(self, reply: str, asked: int) -> int:
        """Return the size that a reply names, one that the log can go on from."""
        try:
            size = from_decimal(reply.removesuffix("\n"))
        except ValueError as error:
            raise WitnessError(f"{self.verifier.name} answered 409 without its size: {error}") from error
        if size > asked:
            raise WitnessAhead(self.verifier.name, size, asked)
        return size

    def _checked(self, note: str, lines: str) -> Cosignature:
        """Return the cosignature that a reply adds to the note; other keys' are ignored."""
        text = note.rpartition("\n\n")[0]
        try:
            cosignature = self.verifier.find(Note.parse(f"{text}\n\n{lines}"))
        except CheckpointError as error:
            raise WitnessError(
                f"{self.verifier.name} answered with a cosignature that does not hold: {error}"
            ) from error
        if cosignature is None:
            raise WitnessError(f"{self.verifier.name} answered without a cosignature by its key")
        return cosignature

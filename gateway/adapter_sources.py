"""Where an adapter may come from: a folder, an S3-compatible store, or a model hub.

A source hands out the two files of an adapter as bytes, and nothing else of what lies beside them. The S3 client takes
region, keys and another endpoint from the environment, as archives do; the hub is the one of HF_ENDPOINT, asked with
HF_TOKEN where there is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import httpx

from gateway.engines.adapters import CONFIG_FILE, WEIGHTS_FILE, open_plain
from ledger_client import ArchiveError, s3_client

SourceKind: TypeAlias = Literal["directory", "s3", "hub"]

TIMEOUT_S = 30.0
_PIECE_BYTES = 1 << 20
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,62})/([^\0]{1,900})")
_HUB = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceError(Exception):
    """An adapter's files cannot be had from where they are said to be; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file being read. size_bytes: what its source says that it has, where it says so; nobody need believe it."""

    size_bytes: int | None
    pieces: Iterator[bytes]


class AdapterSource(Protocol):
    """Something that an adapter's files can be read from."""

    @property
    def address(self) -> str:
        """What it is called, so that the same files can be asked for again."""
        ...

    def open(self, name: str) -> AbstractContextManager[Opened]:
        """Open a file for reading, once from its start. Raises SourceError, also in the middle of reading."""
        ...

    def close(self) -> None:
        """Close what is open to it."""
        ...


def open_source(name: str, allowed: Sequence[SourceKind]) -> AdapterSource:
    """Return the source that a name stands for.

    allowed: the kinds that the operator permits. Raises SourceError for any other, and for a name that is none.
    """
    if "://" not in name:
        _require("directory", allowed)
        return DirectorySource(Path(name))
    if match := _S3.fullmatch(name):
        _require("s3", allowed)
        return S3Source(match[1], match[2].strip("/"))
    if (match := _HUB.fullmatch(name)) and ".." not in name:
        _require("hub", allowed)
        return HubSource(match["repository"], match["revision"] or "main")
    raise SourceError(
        f"an adapter comes from a folder, s3://bucket/prefix or hf://org/name[@revision], not from {name}"
    )


def _require(kind: SourceKind, allowed: Sequence[SourceKind]) -> None:
    if kind not in allowed:
        permitted = ", ".join(allowed) or "none"
        raise SourceError(f"adapters may not come from a source of kind {kind}: [adapters] sources permits {permitted}")


class DirectorySource:
    """A folder. Links in it are not followed, for they may lead anywhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.address = str(self._folder)

    @contextmanager
    def open(self, name: str) -> Iterator[Opened]:
        """See AdapterSource.open."""
        try:
            with open_plain(self._folder / name) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                yield Opened(size_bytes=size_bytes, pieces=iter(lambda: file.read(_PIECE_BYTES), b""))
        except FileNotFoundError:
            raise _missing(name, self.address) from None

    def close(self) -> None:
        """See AdapterSource.close."""


class S3Source:
    """Objects under a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            self._client, self._errors = s3_client()
        except ArchiveError as error:
            raise SourceError(str(error)) from error
        self._bucket, self._prefix = bucket, prefix
        self.address = f"s3://{bucket}/{prefix}"

    @contextmanager
    def open(self, name: str) -> Iterator[Opened]:
        """See AdapterSource.open."""
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
            with closing(found["Body"]) as body:
                yield Opened(size_bytes=found["ContentLength"], pieces=body.iter_chunks(_PIECE_BYTES))
        except self._client.exceptions.NoSuchKey:
            raise _missing(name, self.address) from None
        except self._errors as error:
            raise SourceError(f"{name} cannot be read from {self.address}: {error}") from error

    def close(self) -> None:
        """See AdapterSource.close."""
        self._client.close()


class HubSource:
    """A repository of a model hub, at the commit that its revision names when the source is made."""

    def __init__(self, repository: str, revision: str) -> None:
        try:
            from huggingface_hub import get_token, hf_hub_url  # noqa: PLC0415 - only this source needs the extra
        except ImportError as error:
            raise SourceError("hf:// needs the extra `hub`: pip install 'tributary-gateway[hub]'") from error
        self._repository = repository
        self._url = hf_hub_url
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=3))
        self.address = f"hf://{repository}@{revision}"
        self._commit = revision
        try:
            self._commit = self._resolve()  # both files are read from one commit, whatever is pushed meanwhile
        except SourceError:
            self.close()
            raise
        self.address = f"hf://{repository}@{self._commit}"

    def _resolve(self) -> str:
        with self._asked("HEAD", CONFIG_FILE) as response:
            # It stands in the hub's own answer, which may have sent us on to a host that answers no HEAD.
            answers = (*response.history, response)
            commit: str | None = next((found for each in answers if (found := each.headers.get("X-Repo-Commit"))), None)
            if commit is None:
                self._check(response, CONFIG_FILE)
        if commit is None or not _COMMIT.fullmatch(commit):
            raise SourceError(f"the hub does not say at which commit {self.address} is")
        return commit

    @contextmanager
    def open(self, name: str) -> Iterator[Opened]:
        """See AdapterSource.open."""
        with self._asked("GET", name) as response:
            self._check(response, name)
            length = response.headers.get("Content-Length", "")
            # As they are sent: a compressed answer, which was not asked for, must not grow beyond the bound here.
            pieces = response.iter_raw(_PIECE_BYTES)
            yield Opened(size_bytes=int(length) if re.fullmatch("[0-9]{1,15}", length) else None, pieces=pieces)

    def close(self) -> None:
        """See AdapterSource.close."""
        self._http.close()

    @contextmanager
    def _asked(self, method: str, name: str) -> Iterator[httpx.Response]:
        url = self._url(self._repository, name, revision=self._commit, endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            # httpx leaves the hub's token out when it is sent on to another host.
            with self._http.stream(method, url, follow_redirects=True) as response:
                yield response
        except httpx.HTTPError as error:
            raise SourceError(f"{name} cannot be read from {self.address}: {error}") from error

    def _check(self, response: httpx.Response, name: str) -> None:
        match response.status_code:
            case 200:
                return
            case 404:
                raise _missing(name, self.address)
            case 401 | 403:
                raise SourceError(f"the hub has no {self.address} for us; set HF_TOKEN to a token that may read it")
        raise SourceError(f"the hub answered {response.status_code} for {name} of {self.address}")


def _missing(name: str, address: str) -> SourceError:
    told = "; a pickle, which can run code when it is opened, does not stand in for it" if name == WEIGHTS_FILE else ""
    return SourceError(f"there is no {name} in {address}{told}")

"""Where the files of an archive lie: a folder, an S3-compatible store, or a web server that is only read.

A store is named as people name it: a path, s3://bucket/prefix, or an http(s) address. The S3 client takes region, keys
and another endpoint from the environment (AWS_REGION, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), as all of its kind do.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httpx

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT_S = 30.0


class ArchiveError(Exception):
    """An archive that cannot be read or written, or that is not what it is said to be; the message names the file."""


class Source(Protocol):
    """Something that files can be read from, by their path below it."""

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """Return a file, None where there is none. Raises ArchiveError for a longer one, or when it cannot tell."""
        ...


class Store(Source, Protocol):
    """A source that can be written too. A file is there whole or not at all."""

    def write(self, path: str, content: bytes) -> None:
        """Write a file, or replace it."""
        ...


class DirectoryStore:
    """A folder, which is made by the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """Return a file, None where there is none."""
        try:
            with (self._folder / path).open("rb") as file:
                return _bounded(path, file.read(limit_bytes + 1), limit_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error}") from error

    def write(self, path: str, content: bytes) -> None:
        """Write a file beside its place, and move it there when the disk has it."""
        target = self._folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
            try:
                with beside.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ArchiveError(f"{path} cannot be written: {error}") from error


class WebSource:
    """A web server: a gateway's /log, or any that serves an archive's files. Redirects are not followed."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(
            base_url=address.rstrip("/") + "/", timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=3)
        )

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """Return a file, None where the server says that there is none."""
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code in {404, 410}:
                    return None
                if response.status_code != 200:
                    raise ArchiveError(f"{path} cannot be read: the server answered {response.status_code}")
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if len(content) > limit_bytes:
                        break
        except httpx.HTTPError as error:
            raise ArchiveError(f"{path} cannot be read: {error}") from error
        return _bounded(path, bytes(content), limit_bytes)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> WebSource:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def s3_client() -> tuple[Any, tuple[type[Exception], ...]]:
    """Return a client of S3-compatible stores through boto3 (the extra `s3`), and the errors that it raises.

    Raises ArchiveError without the extra, or when the environment makes no client.
    """
    try:
        import boto3  # type: ignore[import-untyped] # noqa: PLC0415 - only such stores need the extra
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        raise ArchiveError("s3:// needs the extra `s3`: pip install 'tributary-gateway[s3]'") from error
    errors = (BotoCoreError, ClientError)
    try:
        return boto3.client("s3"), errors
    except errors as error:
        raise ArchiveError(f"no S3-compatible store can be reached: {error}") from error


class S3Store:
    """Objects under a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._client, self._errors = s3_client()
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """Return an object, None where there is none."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"]
            with body:
                content: bytes = body.read(limit_bytes + 1)
        except self._client.exceptions.NoSuchKey:
            return None
        except self._errors as error:
            raise ArchiveError(f"{path} cannot be read: {error}") from error
        return _bounded(path, content, limit_bytes)

    def write(self, path: str, content: bytes) -> None:
        """Put an object; such stores do that whole or not at all."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + path, Body=content)
        except self._errors as error:
            raise ArchiveError(f"{path} cannot be written: {error}") from error


def open_source(name: str) -> Source:
    """Return what a name stands for. Raises ArchiveError for a kind of address that is none of ours."""
    return WebSource(name) if urlsplit(name).scheme in {"http", "https"} else open_store(name)


def open_store(name: str) -> Store:
    """Return the store that a name stands for. Raises ArchiveError where nothing can be written."""
    parts = urlsplit(name)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path)
    if "://" in name:
        raise ArchiveError(f"an archive is written to a folder or to s3://bucket/prefix, not to {name}")
    return DirectoryStore(Path(name))


def _bounded(path: str, content: bytes, limit_bytes: int) -> bytes:
    if len(content) > limit_bytes:
        raise ArchiveError(f"{path} is longer than the {limit_bytes} bytes that it may have")
    return content

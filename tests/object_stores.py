"""An S3-compatible store on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def bucket(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new bucket, which the environment says how to reach."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        name = f"kept-{secrets.token_hex(8)}"  # servers of one process share what they keep
        boto3.client("s3").create_bucket(Bucket=name)
        yield name
    finally:
        server.stop()

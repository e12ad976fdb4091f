"""Adapters out of folders, object stores and hubs: the two files, bounded, and only from where the operator permits."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from gateway.adapter_sources import SourceError, open_source
from gateway.adapter_store import AdapterStore
from gateway.engines import AdapterRejected
from gateway.engines.adapters import FILE_LIMITS_BYTES

from .. import object_stores  # noqa: TID252  the tests are no package of their own
from .engines.adapter_kit import tensors, write
from .hub import Hub, hub

BASE = "smollm2-135m-instruct"
SHAPES = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.0.self_attn.v_proj": (16, 4)}
Place = Callable[[Path], str]
"""Puts the files of a folder where a source of one kind finds them, in place of those before; returns its name."""


@pytest.fixture
def made_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield made


@pytest.fixture(params=["directory", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "directory":

        def copy(folder: Path) -> str:
            target = tmp_path / "offered"
            target.mkdir(exist_ok=True)
            for file in folder.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
            return str(target)

        yield copy
    elif request.param == "s3":
        with object_stores.bucket(monkeypatch) as bucket:

            def put(folder: Path) -> str:
                for file in folder.iterdir():
                    boto3.client("s3").put_object(Bucket=bucket, Key=f"our/qa/{file.name}", Body=file.read_bytes())
                return f"s3://{bucket}/our/qa/"

            yield put
    else:
        made = request.getfixturevalue("made_hub")

        def push(folder: Path) -> str:
            made.commits["main"] = folder
            return "hf://lantern/qa"

        yield push


def adapter(folder: Path, seed: int = 0) -> Path:
    return write(folder, tensors(SHAPES, seed=seed))


def new_store(folder: Path) -> AdapterStore:
    return AdapterStore(folder / "store", sources=("directory", "s3", "hub"), base_model=BASE, max_rank=64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of moto and boto3
def test_what_is_pulled_is_what_was_offered_then(tmp_path: Path, place: Place) -> None:
    made = adapter(tmp_path / "one")
    (made / "optimizer.pt").write_bytes(b"\x80\x04.")  # trainers leave pickles about; nobody takes them along
    store = new_store(tmp_path)
    told: list[tuple[str, int, int | None]] = []
    pulled = store.pull(place(made), tell=lambda *step: told.append(step))
    sizes = {name: (made / name).stat().st_size for name in FILE_LIMITS_BYTES}
    assert [step for step in told if step[1] == step[2]] == [(name, size, size) for name, size in sizes.items()]
    assert {file.name for file in pulled.files.path.iterdir()} == set(FILE_LIMITS_BYTES)
    assert pulled.files.path.name == pulled.files.digest

    place(adapter(tmp_path / "two", seed=1))  # other weights take the place of those pulled
    assert store.read(pulled.files.digest).read_weights() == (made / "adapter_model.safetensors").read_bytes()
    assert store.pull(place(tmp_path / "two")).files.digest != pulled.files.digest


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("missing", list(FILE_LIMITS_BYTES))
def test_a_source_without_one_of_the_files_is_refused(tmp_path: Path, place: Place, missing: str) -> None:
    made = adapter(tmp_path / "one")
    (made / missing).unlink()
    (made / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises((SourceError, AdapterRejected), match=missing):
        new_store(tmp_path).pull(place(made))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_source_that_never_ends_is_left(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILE_LIMITS_BYTES, "adapter_model.safetensors", 100)
    with pytest.raises(AdapterRejected, match="larger than the 100 bytes"):
        new_store(tmp_path).pull(place(adapter(tmp_path / "one")))
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("name", "kind"), [("somewhere", "directory"), ("s3://bucket/qa", "s3"), ("hf://lantern/qa", "hub")]
)
def test_only_what_the_operator_permits_is_asked(name: str, kind: str) -> None:
    others = [other for other in ("directory", "s3", "hub") if other != kind]
    with pytest.raises(SourceError, match=f"of kind {kind}: .* permits {', '.join(others)}"):
        open_source(name, others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "http://example.com/qa",
        "file:///etc",
        "s3://bucket",
        "s3:///qa",
        "s3://Bucket/qa",
        "hf://qa",
        "hf://lantern/qa/more",
        "hf://lantern/..",
        "hf://lantern/qa@../../api",
        "hf://lantern/qa@a?b",
        "hf://lantern/qa@",
        "hf://user@lantern/qa",
    ],
)
def test_what_is_no_source_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="not from"):
        open_source(name, ("directory", "s3", "hub"))


def test_a_hub_is_read_at_one_commit_and_only_it_sees_the_token(
    tmp_path: Path, made_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_hub.commits["v1"] = adapter(tmp_path / "one")
    made_hub.token = secrets.token_hex(8)
    store = new_store(tmp_path)
    with pytest.raises(SourceError, match="set HF_TOKEN"):
        store.pull("hf://lantern/qa@v1")
    monkeypatch.setenv("HF_TOKEN", made_hub.token)
    made_hub.asked.clear()
    pulled = store.pull("hf://lantern/qa@v1")
    commit = made_hub.commit("v1")
    assert pulled.source == f"hf://lantern/qa@{commit}"
    bearer = f"Bearer {made_hub.token}"
    assert made_hub.asked == [
        ("hub", "/lantern/qa/resolve/v1/adapter_config.json", bearer),
        ("hub", f"/lantern/qa/resolve/{commit}/adapter_config.json", bearer),
        ("hub", f"/lantern/qa/resolve/{commit}/adapter_model.safetensors", bearer),
        ("files", f"/{commit}/adapter_model.safetensors", None),
    ]
    assert store.pull(pulled.source) == pulled


def test_a_hub_that_names_no_commit_is_not_believed(tmp_path: Path, made_hub: Hub) -> None:
    made_hub.commits["main"] = adapter(tmp_path / "one")
    made_hub.says_commit = False
    with pytest.raises(SourceError, match="at which commit"):
        new_store(tmp_path).pull("hf://lantern/qa")


def test_a_hub_that_is_away_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="cannot be read from hf://lantern/qa@main"):
        new_store(tmp_path).pull("hf://lantern/qa")


def test_an_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, extra in (("huggingface_hub", "hf://lantern/qa", "hub"), ("boto3", "s3://bucket/qa", "s3")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SourceError, match=rf"the extra `{extra}`"):
            new_store(tmp_path).pull(name)

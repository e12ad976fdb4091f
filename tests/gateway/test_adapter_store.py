"""The store of adapters: nothing gets into it unverified, and nothing out of it that was changed there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.adapter_sources import SourceError
from gateway.adapter_store import AdapterStore
from gateway.engines import AdapterRejected
from gateway.engines.adapters import CONFIG_FILE, WEIGHTS_FILE

from .engines.adapter_kit import tensors, write

BASE = "smollm2-135m-instruct"
SHAPES = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.0.self_attn.v_proj": (16, 4)}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store", sources=("directory",), base_model=BASE, max_rank=16)


def offer(folder: Path, **changed: object) -> Path:
    return write(folder / "offered", tensors(SHAPES), **changed)


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return apply


def link_out(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return apply


def configure(**changed: object) -> Callable[[Path], None]:
    return rewrite(CONFIG_FILE, lambda content: json.dumps(json.loads(content) | changed).encode())


def weigh(part: str, value: np.ndarray) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = tensors(SHAPES)
        weights[next(name for name in weights if part in name)] = value
        write(folder, weights)

    return apply


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def a_pipe(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (link_out(CONFIG_FILE), "is a link"),
        (link_out(WEIGHTS_FILE), "is a link"),
        (a_pipe, "no plain file"),
        (only_a_pickle, f"no {WEIGHTS_FILE}"),
        (rewrite(WEIGHTS_FILE, lambda _: pickle.dumps({"weights": 1})), "not a safetensors file"),
        (rewrite(WEIGHTS_FILE, lambda content: (1 << 40).to_bytes(8, "little") + content[8:]), "not a safetensors"),
        (
            rewrite(WEIGHTS_FILE, lambda _: (8 << 20).to_bytes(8, "little") + b" " * (9 << 20)),
            "not a safetensors",
        ),
        (rewrite(WEIGHTS_FILE, lambda content: content + b"more"), "bytes after its last tensor"),
        (rewrite(CONFIG_FILE, lambda _: b"{" + b" " * (64 << 10)), "larger than"),
        (rewrite(CONFIG_FILE, lambda _: b"[" * 9000), "not JSON"),
        (configure(r=4), "has rank 8, but r"),
        (configure(r=1 << 70), "from 1 to 16"),
        (configure(auto_mapping={"parent_library": "os"}), "uses auto_mapping"),
        (configure(target_modules=["lm_head"]), "names lm_head"),
        (configure(base_model_name_or_path="meta/Llama-3-8B"), "made for meta/Llama-3-8B"),
        (configure(peft_type="PROMPT_TUNING"), "must be LORA"),
        (weigh("lora_B", np.full((16, 8), np.inf, np.float32)), "holds an infinity"),
        (weigh("lora_A", np.zeros((8, 16), np.int8)), "must be a matrix"),
    ],
)
def test_a_hostile_folder_leaves_the_store_empty(
    store: AdapterStore, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = offer(tmp_path)
    spoil(folder)
    with pytest.raises((AdapterRejected, SourceError), match=reason):
        store.pull(str(folder))
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}


def test_a_rank_over_the_limit_gets_neither_in_nor_out(tmp_path: Path) -> None:
    folder = offer(tmp_path)
    small = AdapterStore(tmp_path / "store", sources=("directory",), base_model=BASE, max_rank=4)
    with pytest.raises(AdapterRejected, match="from 1 to 4, not 8"):
        small.pull(str(folder))
    kept = AdapterStore(tmp_path / "store", sources=("directory",), base_model=BASE, max_rank=8).pull(str(folder))
    with pytest.raises(AdapterRejected, match="from 1 to 4, not 8"):  # the limit was lowered since
        small.read(kept.files.digest)


def add(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"\x80\x04.") and None


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (
            rewrite(WEIGHTS_FILE, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
            "not those that were registered",
        ),
        (configure(lora_alpha=17), "not those that were registered"),
        (configure(auto_mapping={"parent_library": "os"}), "uses auto_mapping"),
        (link_out(WEIGHTS_FILE), "is a link"),
        (add("adapter_model.bin"), "holds adapter_model.bin, which nobody verified"),
        (add("new_embeddings.safetensors"), "which nobody verified"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "holds no adapter_config.json"),
    ],
)
def test_what_was_changed_in_the_store_is_given_to_nobody(
    store: AdapterStore, tmp_path: Path, tamper: Callable[[Path], None], reason: str
) -> None:
    folder = offer(tmp_path)
    pulled = store.pull(str(folder))
    tamper(pulled.files.path)
    for ask in (
        lambda: store.read(pulled.files.digest),
        lambda: store.require(pulled.files.digest, pulled.source),
        lambda: store.pull(str(folder)),
    ):
        with pytest.raises(AdapterRejected, match=reason):
            ask()
    shutil.rmtree(pulled.files.path)
    assert store.require(pulled.files.digest, pulled.source) == pulled.files


def test_one_digest_never_stands_for_other_files(store: AdapterStore, tmp_path: Path) -> None:
    pulled = store.pull(str(offer(tmp_path)))
    other = store.pull(str(offer(tmp_path, lora_alpha=17)))
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (pulled.files.path / name).unlink()
        shutil.copy(other.files.path / name, pulled.files.path / name)
    with pytest.raises(AdapterRejected, match="not those that were registered"):
        store.read(pulled.files.digest)


def test_what_is_missing_is_pulled_again_if_it_is_still_the_same(store: AdapterStore, tmp_path: Path) -> None:
    pulled = store.pull(str(offer(tmp_path)))
    digest = pulled.files.digest
    shutil.rmtree(pulled.files.path)
    offer(tmp_path, lora_alpha=17)
    with pytest.raises(AdapterRejected, match=f"by now, not {digest}"):
        store.require(digest, pulled.source)
    with pytest.raises(SourceError, match=r"there is no adapter sha256 .*, and there is no adapter_config"):
        store.require(digest, str(tmp_path / "gone"))
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}
    offer(tmp_path)
    assert store.require(digest, pulled.source).digest == digest


def test_stored_files_are_read_only_and_what_a_killed_pull_left_is_swept(store: AdapterStore, tmp_path: Path) -> None:
    left = tmp_path / "store" / ".arriving-x"
    left.mkdir(parents=True)
    (left / WEIGHTS_FILE).write_bytes(b"half of it")
    pulled = store.pull(str(offer(tmp_path)))
    assert store.pull(str(tmp_path / "offered")) == pulled
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock", pulled.files.digest}
    assert {stat.S_IMODE(file.stat().st_mode) for file in pulled.files.path.iterdir()} == {0o444}
    assert stat.S_IMODE(pulled.files.path.stat().st_mode) == 0o755

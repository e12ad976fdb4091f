"""Record the demo's questions: ask each through the gateway's pipeline, then score every coalition of its answer."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from attribution import EXACT, Explanation, ValueTable
from benchmarks.attribution.recording import RecordedAnswer, Recording
from gateway import scoring
from gateway.app import open_gateway
from gateway.auth import authenticate
from gateway.cli.demo import Site, lay_out
from gateway.engines import SamplingParams
from gateway.exchange import Question
from gateway.grounding import Message
from gateway.settings import load
from gateway.state import Gateway
from retrieval import documents

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "guide"
MAX_TOKENS = 40


def record(limit: int) -> Recording:
    """Lay the demo out in a scratch folder and record its first `limit` questions; minutes on two cores."""
    questions = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))["demo"][:limit]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(examples=EXAMPLES, folder=Path(folder))
        keys = lay_out(site)
        return asyncio.run(_record(site, keys["caller"], questions))


async def _record(site: Site, secret: str, questions: list[dict[str, Any]]) -> Recording:
    async with open_gateway(load(site.folder / "tributary.toml")) as gateway:
        caller = await gateway.transactions.read(lambda c: authenticate(c, f"Bearer {secret}"))
        answers = [
            await _answer(gateway, caller.subject, question)
            for question in track(questions, description="scoring every coalition")
        ]
        engine = f"{gateway.engine.name} {gateway.engine.base_model} {gateway.engine.dtype}"
        return Recording(engine=engine, noise_nats=gateway.engine.noise_nats, answers=tuple(answers))


async def _answer(gateway: Gateway, caller: str, question: dict[str, Any]) -> RecordedAnswer:
    model = gateway.catalogue.find(MODEL)
    messages = (Message(role="user", content=question["question"]),)
    asked = Question(
        model=model,
        messages=messages,
        corpora=model.corpora,
        top_k=model.top_k,
        sampling=SamplingParams(max_tokens=MAX_TOKENS, temperature=0),
    )
    answer = await gateway.pipeline.open(caller, asked)
    text = "".join([delta.text async for delta in answer.deltas()])
    scored = await scoring.explain(
        gateway.engine, answer.sealed(), model.adapter, EXACT, tie_key=question["id"].encode()
    )
    if scored is None:
        raise SystemExit(f"{question['id']}: there was nothing to score")
    holders = await _holders(gateway, question)
    return RecordedAnswer(question=question["question"], answer=text, holders=holders, game=_table(scored.explanation))


def _table(explanation: Explanation) -> ValueTable:
    """The values of all coalitions, in the row order of a table."""
    coalitions = explanation.plan.coalitions
    values = np.empty_like(explanation.values_nats)
    values[coalitions @ (1 << np.arange(coalitions.shape[1]))] = explanation.values_nats
    return ValueTable(players=explanation.plan.players, values=values)


async def _holders(gateway: Gateway, question: dict[str, Any]) -> tuple[str, ...]:
    """The ids of the documents that hold the answer."""
    names = [question["document"], *question.get("near_copies", [])]
    known = await gateway.transactions.read(lambda c: documents(c, corpus=question["corpus"]))
    held = [document.id for document in known if any(name.endswith(document.source) for name in names)]
    if len(held) != len(names):
        raise SystemExit(f"{question['id']}: {names} are not all in corpus {question['corpus']}")
    return tuple(held)

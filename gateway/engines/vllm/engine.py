"""One vLLM server as an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import orjson
import structlog

from gateway.engines.adapters import MAX_RANK, AdapterFiles, linear_shapes
from gateway.engines.base import (
    AdapterNotLoaded,
    AdapterRejected,
    Delta,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    Health,
    PromptTooLong,
    Scores,
)
from gateway.engines.vllm import bodies
from gateway.engines.vllm.client import VllmClient, parse, read
from gateway.engines.vllm.disarm import Disarm
from gateway.engines.vllm.load import Load
from gateway.engines.vllm.refusals import Refusal
from gateway.engines.vllm.residents import Residents
from gateway.engines.vllm.scoring import Scorer
from gateway.engines.vllm.stream import EventWalker, Splicer, whole
from gateway.grounding import Message

if TYPE_CHECKING:
    from numpy.typing import NDArray

Dtype = Literal["fp32", "bf16"]

# Rounding differs with what else is in a batch. In fp32 it is what an audit allows between machines.
_NOISE_NATS: Mapping[Dtype, float] = {"fp32": 1e-3, "bf16": 0.2}
# Total change of log-probability over the probe below which an adapter counts as doing nothing: above rounding, and far
# below what any trained adapter does (tens of nats).
_SILENT_NATS: Mapping[Dtype, float] = {"fp32": 1e-3, "bf16": 1.0}
# What a new adapter must change the expectation of; any ordinary text does.
_PROBE = "Which river runs through the capital of France? The Seine runs through Paris, the capital of France."
_HEALTH_S = 1.0

log = structlog.get_logger(__name__)


class VllmEngine:
    """A vLLM server that somebody else runs, or that runs for this engine alone. `open` makes one."""

    name = "vllm"
    options = bodies.OPTIONS

    def __init__(
        self,
        client: VllmClient,
        *,
        base_model: str,
        base_digest: str,
        served_name: str,
        version: str,
        context_tokens: int,
        dtype: Dtype,
        model_directory: Path | None,
        max_rank: int,
        priorities: bool,
        scorings: int,
    ) -> None:
        self.base_model = base_model
        self.base_digest = base_digest
        self.version = version
        self.dtype = dtype
        self.context_tokens = context_tokens
        self.noise_nats = _NOISE_NATS[dtype]
        self._client = client
        self._served_name = served_name
        self._max_rank = max_rank
        self._priorities = priorities
        self._base_shapes = linear_shapes(model_directory) if model_directory else None
        self._disarm = Disarm.of(model_directory) if model_directory else Disarm(frozenset())
        self._residents = Residents()
        self._scorer = Scorer(client, context_tokens=context_tokens, concurrency=scorings, priorities=priorities)
        self._probe: Sequence[int] = ()
        self._expected: NDArray[np.float64] = np.empty(0)
        self._health: asyncio.Future[Health] | None = None
        self._health_until_s = 0.0
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        base_model: str,
        base_digest: str,
        served_name: str | None = None,
        dtype: Dtype = "fp32",
        model_directory: Path | None = None,
        max_rank: int = MAX_RANK,
        api_key: str | None = None,
        priorities: bool = False,
        scorings: int = 4,
        silence_s: float = 300,
    ) -> Self:
        """Ask a server what it serves and how it can score. Raises EngineUnavailable.

        base_model, base_digest: what the gateway calls the base, and the SHA-256 hex of its weights. served_name: what
        the server calls it; by default the first that it lists. model_directory: the base's folder, where it is at
        hand; adapters are then held against its shapes, and control tokens in messages disarmed. priorities: whether
        the server was started with `--scheduling-policy priority`. scorings: prompts scored at once. silence_s: see
        VllmClient.
        """
        client = VllmClient(url, api_key=api_key, silence_s=silence_s)
        try:
            served_name, context_tokens = _base(await _serves(client), served_name)
            engine = cls(
                client,
                base_model=base_model,
                base_digest=base_digest,
                served_name=served_name,
                version=f"vllm/{parse(await client.get('/version'))['version']}",
                context_tokens=context_tokens,
                dtype=dtype,
                model_directory=model_directory,
                max_rank=max_rank,
                priorities=priorities,
                scorings=scorings,
            )
            engine._probe = await engine.tokenize(_PROBE)
            engine._expected = await engine._scorer.probe(
                engine._probe, model=served_name, tolerance_nats=engine.noise_nats
            )
        except BaseException:
            await client.close()
            raise
        return engine

    async def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """See Engine.render. Control tokens that a message spells out lose their power where the base is at hand."""
        return await self._tokens(bodies.rendering(messages, tools, model=self._served_name, disarm=self._disarm))

    async def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        return await self._tokens({"model": self._served_name, "prompt": text})

    async def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        reply = await self._client.post("/tokenize", body, adapter=None, context_tokens=self.context_tokens)
        match reply:
            case {"tokens": list(tokens)} if all(type(token) is int for token in tokens):
                return tokens
        raise EngineUnavailable("the vLLM server answered no token ids")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine.generate. The token that ends a turn is among an answer's, and so are those of a stop sequence."""
        self._check_open()
        if unknown := request.options.keys() - bodies.OPTIONS:
            raise EngineRefused("vLLM is not asked for this", min(unknown))
        adapter = request.adapter
        model = adapter or self._served_name
        choices = int(request.options.get("n") or 1)
        path, body = bodies.generation(request, model=model, priorities=self._priorities, disarm=self._disarm)
        splicer = Splicer(written=model, told=request.model)
        try:
            with self._residents.used(adapter) if adapter else nullcontext():
                async with self._client.ask(
                    path,
                    orjson.dumps(body),
                    adapter=adapter,
                    context_tokens=self.context_tokens,
                    request_id=request.request_id,
                ) as reply:
                    if not request.stream:
                        for delta in whole(await read(reply), splicer, choices=choices):
                            yield delta
                        return
                    walker = EventWalker(splicer, choices=choices, adapter=adapter, context_tokens=self.context_tokens)
                    while not walker.done and (data := await reply.some()):
                        for delta in walker.feed(data):
                            yield delta
                    walker.end()
                    # The connection can serve again only when the end of the reply was read.
                    await reply.some()
        except AdapterNotLoaded as error:
            self._residents.remove(error.name)
            raise
        except PromptTooLong as error:
            raise await self._counted(request, error) from None

    async def _counted(self, request: GenerationRequest, error: PromptTooLong) -> PromptTooLong:
        """The same error with the prompt's whole length, of which the server only says that it is too much."""
        try:
            if request.messages is not None:
                ids: Sequence[int] = await self.render(request.messages, request.tools)
            else:
                ids = await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt or ()
        except EngineError:
            return error
        return PromptTooLong(tokens=max(len(ids), error.tokens), limit_tokens=error.limit_tokens)

    async def score(self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None) -> Scores:
        """See Engine.score."""
        self._check_open()
        if not answer or not all(prompts):
            raise ValueError("a prompt and an answer hold at least one token")
        for prompt in prompts:
            if len(prompt) + len(answer) > self.context_tokens:
                raise PromptTooLong(tokens=len(prompt), limit_tokens=self.context_tokens - len(answer))
        try:
            with self._residents.used(adapter) if adapter else nullcontext():
                return await self._scorer.score(prompts, answer, model=adapter or self._served_name, adapter=adapter)
        except AdapterNotLoaded as error:
            self._residents.remove(error.name)
            raise

    async def load(self, adapter: AdapterFiles) -> None:
        """See Engine.load. The server reads the adapter's folder itself, so it must see it under the same path."""
        self._check_open()
        async with self._residents.changing(adapter.name):
            if adapter.name in self._residents.names:
                return
            if self._base_shapes is not None:
                adapter.check_fits(base_model=self.base_model, base_shapes=self._base_shapes)
            if adapter.rank > self._max_rank:
                raise AdapterRejected(f"r is {adapter.rank}, and this server takes adapters up to {self._max_rank}")
            await asyncio.to_thread(adapter.read_weights)
            await self._put(adapter)
            try:
                await self._prove(adapter.name)
            except AdapterRejected:
                await self._client.send("/v1/unload_lora_adapter", {"lora_name": adapter.name})
                raise
            self._residents.add(adapter)

    async def _put(self, adapter: AdapterFiles) -> None:
        if adapter.name in await _serves(self._client):
            return  # an earlier gateway loaded it; its name says which weights it has
        status, said = await self._client.send(
            "/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter.path.resolve())}
        )
        if status == 200:
            return
        message = Refusal.read(status, said).message
        if status in (401, 403, 404):
            raise EngineUnavailable(f"the vLLM server loads no adapter from {adapter.path}: {message}")
        # The server says of every failure that it is its own; if it is well, it was the adapter's.
        await self._client.get("/health")
        raise AdapterRejected(f"vLLM does not take the adapter: {message}")

    async def _prove(self, name: str) -> None:
        """Raise AdapterRejected unless the probe is expected otherwise than by the base.

        A server can leave out weights that it cannot place, and answer as the base in the adapter's name.
        """
        found = await self._scorer.logprobs(self._probe, model=name, adapter=name)
        change = float(np.abs(found - self._expected).sum())
        if not change > _SILENT_NATS[self.dtype]:
            raise AdapterRejected(
                f"the adapter changes nothing: its log-probabilities differ from the base model's by {change:.1g} nats"
            )

    async def unload(self, name: str) -> None:
        """See Engine.unload. vLLM gives the slot to the next adapter that needs one."""
        async with self._residents.changing(name):
            if name not in self._residents.names:
                raise AdapterNotLoaded(name)
            self._residents.remove(name)
            await self._residents.idle(name)
            status, said = await self._client.send("/v1/unload_lora_adapter", {"lora_name": name})
            if status not in (200, 404):
                raise EngineUnavailable(f"the vLLM server keeps the adapter: {Refusal.read(status, said).message}")

    def resident(self) -> frozenset[str]:
        """See Engine.resident."""
        return self._residents.names

    async def health(self) -> Health:
        """See Engine.health. Asked of the server at most once a second."""
        now_s = asyncio.get_running_loop().time()
        if self._health is None or now_s >= self._health_until_s:
            self._health_until_s = now_s + _HEALTH_S
            self._health = asyncio.ensure_future(self._ask_health())
        return await asyncio.shield(self._health)

    async def _ask_health(self) -> Health:
        scoring = self._scorer.open
        try:
            load = Load.parse(await self._client.get("/metrics", timeout_s=5))
        except (EngineUnavailable, ValueError):
            return Health(ready=False, generating=0, waiting=0, scoring=scoring)
        return Health(
            ready=not self._closed,
            generating=load.running,
            waiting=load.waiting,
            scoring=scoring,
            kv_used=load.kv_used,
        )

    async def close(self) -> None:
        """See Engine.close."""
        if self._closed:
            return
        self._closed = True
        await self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")


def _base(serves: Mapping[str, Mapping[str, Any]], name: str | None) -> tuple[str, int]:
    """The name of the base among what a server has, the first by default; and its context, in tokens."""
    bases = [base for base, card in serves.items() if not card.get("parent")]
    found = name or next(iter(bases), "a model")
    length = serves[found].get("max_model_len") if found in bases else None
    if type(length) is not int or length < 2:
        raise EngineUnavailable(f"the vLLM server does not serve {found!r}; it serves: {', '.join(bases)}")
    return found, length


async def _serves(client: VllmClient) -> dict[str, dict[str, Any]]:
    """What a server says of each model that it has, by name."""
    match parse(await client.get("/v1/models")):
        case {"data": list(cards)} if all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards):
            return {card["id"]: card for card in cards}
    raise EngineUnavailable("the vLLM server does not say which models it has")

"""The stand-in's routes, its adapters, and how each request goes well or wrong."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from tests.stand_in import shapes
from tests.stand_in.connection import STREAM_END, STREAM_HEAD, Connection, Request, frame, response
from tests.stand_in.faults import FAULTS, Fault, Faults
from tests.stand_in.model import Model, encode
from tests.stand_in.shapes import DONE, ERROR_EVENT, Ask

VERSION = "0.32.0"
DRIP_S = 1.0
_FOREVER_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """model: name that it serves under. slots: adapters that fit its memory. delay_ms: before the first byte of an
    answer, chunk_ms: between two chunks (0: all in one burst), load_ms: to load an adapter. chunks: tokens of an answer
    that nothing cuts short. scale_out: /inference/v1/generate is served."""

    model: str = "stand-in"
    context: int = 8192
    slots: int = 8
    chunks: int = 64
    delay_ms: float = 0
    chunk_ms: float = 0
    load_ms: float = 0
    seed: int = 0
    fail_rate: float = 0
    fail_kinds: tuple[Fault, ...] = ("error", "event", "cut")
    scale_out: bool = True


class Refusal(Exception):  # noqa: N818  a route's answer, not a failure of the program
    """An answer other than 200."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        self.status = status
        self.body = shapes.error(message, kind, status, param)
        super().__init__(message)


class StandIn:
    """One server: everything that it knows."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model = Model(seed=options.seed, length_tokens=options.chunks)
        self.faults = Faults(seed=options.seed, rate=options.fail_rate, kinds=options.fail_kinds)
        self.adapters: dict[str, str] = {}
        self.count: Counter[str] = Counter()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.active: Counter[str] = Counter()
        self.connections: set[Connection] = set()
        self._routes: dict[tuple[str, str], Callable[[Request, Connection], bytes | Coroutine[Any, Any, None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/inference/v1/generate"): self._generate,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/health"): lambda _request, _connection: response(200, b""),
            ("GET", "/version"): lambda _request, _connection: response(200, b'{"version":"%b"}' % VERSION.encode()),
            ("GET", "/stand_in/state"): self._state,
            ("POST", "/stand_in/faults"): self._order,
            ("POST", "/stand_in/pace"): self._pace,
        }
        if not options.scale_out:
            del self._routes["POST", "/inference/v1/generate"]

    def connection(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self.handle, self.connections)

    def handle(self, request: Request, connection: Connection) -> bytes | Coroutine[Any, Any, None]:
        """Answer a request."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            return response(404, b'{"detail":"Not Found"}')
        self.count[request.path] += 1
        try:
            return route(request, connection)
        except Refusal as refusal:
            return response(refusal.status, refusal.body)
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            return response(400, shapes.error(f"{type(error).__name__}: {error}", "Bad Request", 400))

    # -- generating ------------------------------------------------------------------------------------------------

    def _chat(self, request: Request, connection: Connection) -> bytes | Coroutine[Any, Any, None]:
        asked = orjson.loads(request.body)
        fault = self.faults.draw("generate")
        adapter = self._adapter(asked, fault)
        tools = asked.get("tools") or ()
        prompt = self.model.render(asked["messages"], tools)
        top = (asked.get("top_logprobs") or 0) if asked.get("logprobs") else None
        call = _call(asked.get("tool_choice", "auto"), tools, asked["messages"])
        most = asked.get("max_completion_tokens")
        most = asked.get("max_tokens") if most is None else most
        ask = self._ask(request, asked, prompt, adapter, "chatcmpl-", most, top=top, call=call)
        return self._answer(ask, fault, connection, shapes.Chat.steps, shapes.Chat.whole)

    def _completion(self, request: Request, connection: Connection) -> bytes | Coroutine[Any, Any, None]:
        asked = orjson.loads(request.body)
        prompt = encode(asked["prompt"]) if isinstance(asked["prompt"], str) else tuple(asked["prompt"])
        if asked.get("prompt_logprobs") is not None:
            return self._score(request, asked, prompt, connection, cached=0)
        fault = self.faults.draw("generate")
        adapter = self._adapter(asked, fault)
        ask = self._ask(
            request, asked, prompt, adapter, "cmpl-", asked.get("max_tokens", 16), top=asked.get("logprobs")
        )
        return self._answer(ask, fault, connection, shapes.Completion.steps, shapes.Completion.whole)

    def _ask(
        self,
        request: Request,
        asked: dict[str, Any],
        prompt: Sequence[int],
        adapter: str | None,
        prefix: str,
        most: int | None,
        *,
        top: int | None,
        call: tuple[str, str] | None = None,
    ) -> Ask:
        left = self._left(prompt)
        most = left if most is None else min(most, left)
        if most < 1:
            raise Refusal(400, f"max_tokens must be at least 1, got {most}.", param="max_tokens")
        stop = asked.get("stop") or ()
        choices = tuple(
            self.model.answer(
                prompt, adapter, number=number, max_tokens=most, stop=(stop,) if isinstance(stop, str) else stop
            )
            for number in range(asked.get("n") or 1)
        )
        return Ask(
            id=prefix + _request_id(request),
            created=int(time.time()),
            model=adapter or self.options.model,
            adapter=adapter,
            prompt=prompt,
            choices=choices,
            ids=bool(asked.get("return_token_ids")),
            stream=bool(asked.get("stream")),
            usage=bool((asked.get("stream_options") or {}).get("include_usage")),
            top=top,
            call=call,
        )

    def _answer(
        self,
        ask: Ask,
        fault: Fault | None,
        connection: Connection,
        steps: Callable[[Ask], list[list[bytes]]],
        whole: Callable[[Ask], bytes],
    ) -> bytes | Coroutine[Any, Any, None]:
        _before(fault)
        self.count["prompt_tokens"] += len(ask.prompt)
        self.count["generation_tokens"] += sum(len(choice.ids) for choice in ask.choices)
        quick = fault is None and not self.options.delay_ms
        if ask.stream:
            if quick and not self.options.chunk_ms:
                return STREAM_HEAD + b"".join(map(frame, [*chain(*steps(ask)), DONE])) + STREAM_END
            return self._counted(ask.adapter, self._stream(steps(ask), fault, connection))
        if fault == "event":
            raise Refusal(500, "Internal server error", "InternalServerError")
        # Nothing leaves before the last token is there.
        wait_s = (self.options.delay_ms + self.options.chunk_ms * max(len(c.ids) for c in ask.choices)) / 1000
        if quick and not wait_s:
            return response(200, whole(ask))
        return self._counted(ask.adapter, self._whole(response(200, whole(ask)), wait_s, fault, connection))

    async def _stream(self, steps: Sequence[Sequence[bytes]], fault: Fault | None, connection: Connection) -> None:
        write = connection.transport.write
        if fault == "hang":
            await asyncio.sleep(_FOREVER_S)
        await asyncio.sleep(self.options.delay_ms / 1000)
        write(STREAM_HEAD)
        between_s = DRIP_S if fault == "drip" else self.options.chunk_ms / 1000
        for place, events in enumerate(steps):
            if place and between_s:
                await asyncio.sleep(between_s)
            if place == len(steps) // 2 and fault in {"cut", "stall", "event"}:
                if fault == "stall":
                    await asyncio.sleep(_FOREVER_S)
                if fault == "event":
                    write(frame(ERROR_EVENT) + frame(DONE) + STREAM_END)
                else:
                    connection.cut()
                return
            for event in events:
                write(frame(event))
        write(frame(DONE) + STREAM_END)

    async def _whole(self, answer: bytes, wait_s: float, fault: Fault | None, connection: Connection) -> None:
        if fault in {"hang", "stall"}:
            await asyncio.sleep(_FOREVER_S)
        await asyncio.sleep(wait_s)
        if fault == "cut":
            connection.transport.write(answer[: len(answer) // 2])
            connection.cut()
        elif fault == "drip":
            step = 1 + len(answer) // 8
            for start in range(0, len(answer), step):
                connection.transport.write(answer[start : start + step])
                await asyncio.sleep(DRIP_S)
        else:
            connection.transport.write(answer)

    async def _counted(self, adapter: str | None, work: Coroutine[Any, Any, None]) -> None:
        name = adapter or ""
        self.active[name] += 1
        try:
            await work
        finally:
            work.close()
            self.active[name] -= 1

    # -- scoring ---------------------------------------------------------------------------------------------------

    def _generate(self, request: Request, connection: Connection) -> bytes | Coroutine[Any, Any, None]:
        asked = orjson.loads(request.body)
        prompt, sampling = tuple(asked["token_ids"]), asked["sampling_params"]
        if sampling.get("prompt_logprobs") is None:
            ask = self._ask(
                request, asked, prompt, self._adapter(asked, None), "", sampling.get("max_tokens"), top=None
            )
            return response(200, shapes.generated(ask, None))
        if sampling.get("detokenize", True):
            os._exit(1)  # as the real engine dies of it
        if sampling.get("skip_reading_prefix_cache", True):
            return self._score(request, asked, prompt, connection, cached=0)
        return self._score(request, asked, prompt, connection, cached=None)

    def _score(
        self,
        request: Request,
        asked: dict[str, Any],
        prompt: tuple[int, ...],
        connection: Connection,
        *,
        cached: int | None,
    ) -> bytes | Coroutine[Any, Any, None]:
        """cached: positions that come from the prefix cache, hence with no score; None where the cache is to tell."""
        fault = self.faults.draw("score")
        adapter = self._adapter(asked, fault)
        _before(fault)
        self.count["scored_tokens"] += len(prompt)
        known = self.model.cached_tokens(prompt, adapter, asked.get("cache_salt") or "")
        cached = known if cached is None else cached
        if fault == "nan":
            raise Refusal(400, "Out of range float values are not JSON compliant: nan")
        if fault == "garbage":
            cached = len(prompt) - 1
        values = self.model.logprobs(prompt, adapter)
        ids = [token_id * 7 + 1 for token_id in prompt[:cached]] + list(prompt[cached:])
        standard = request.path == "/v1/completions"
        ask = self._ask(request, asked, prompt, adapter, "cmpl-" if standard else "generate-tokens-", 1, top=None)
        rows = shapes.scored(ids, values, text=standard)
        body = shapes.Completion.whole(ask, rows) if standard else shapes.generated(ask, rows)
        if fault is None:
            return response(200, body)
        return self._whole(response(200, body), 0, fault, connection)

    # -- adapters --------------------------------------------------------------------------------------------------

    def _load(self, request: Request, connection: Connection) -> bytes | Coroutine[Any, Any, None]:
        asked = orjson.loads(request.body)
        name, path = asked["lora_name"], asked["lora_path"]
        fault = self.faults.draw("load")
        self.loads.append(name)
        _before(fault)
        if name in self.adapters and not asked.get("load_inplace"):
            raise Refusal(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if not Path(path).is_dir():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        done = response(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), b"text/plain")

        async def later() -> None:
            await asyncio.sleep(_FOREVER_S if fault == "hang" else self.options.load_ms / 1000)
            self.adapters[name] = path
            connection.transport.write(done)

        if self.options.load_ms or fault == "hang":
            return later()
        self.adapters[name] = path
        return done

    def _unload(self, request: Request, _connection: Connection) -> bytes:
        name = orjson.loads(request.body)["lora_name"]
        if name not in self.adapters:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.unloads.append(name)
        return response(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), b"text/plain")

    def _adapter(self, asked: dict[str, Any], fault: Fault | None) -> str | None:
        name = asked.get("model")
        if fault == "lost":
            self.adapters.pop(name or "", None)
        if not name or name == self.options.model:
            return None
        if name not in self.adapters:
            raise Refusal(
                404,
                f"The model `{name}` does not exist. Valid aliases: {self.options.model}.",
                "NotFoundError",
                "model",
            )
        return str(name)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _tokenize(self, request: Request, _connection: Connection) -> bytes:
        asked = orjson.loads(request.body)
        self._adapter(asked, None)
        if "messages" in asked:
            ids = self.model.render(asked["messages"], asked.get("tools") or ())
        else:
            ids = encode(asked["prompt"])
        body = {"count": len(ids), "max_model_len": self.options.context, "tokens": ids, "token_strs": None}
        return response(200, orjson.dumps(body))

    def _models(self, _request: Request, _connection: Connection) -> bytes:
        base = self.options.model
        cards = [shapes.model_card(base, root=base, parent=None, context=self.options.context)]
        cards += [shapes.model_card(name, root=at, parent=base, context=None) for name, at in self.adapters.items()]
        return response(200, orjson.dumps({"object": "list", "data": cards}))

    def _metrics(self, _request: Request, _connection: Connection) -> bytes:
        labels = f'{{engine="0",model_name="{self.options.model}"}}'
        running = sum(self.active.values())
        adapters = ",".join(sorted(name for name, count in self.active.items() if name and count))
        figures = {
            "vllm:num_requests_running": ("gauge", float(running)),
            "vllm:num_requests_waiting": ("gauge", 0.0),
            "vllm:kv_cache_usage_perc": ("gauge", min(1.0, running / 256)),
            "vllm:prompt_tokens_total": ("counter", float(self.count["prompt_tokens"])),
            "vllm:generation_tokens_total": ("counter", float(self.count["generation_tokens"])),
        }
        lines = []
        for name, (kind, value) in figures.items():
            lines += [f"# HELP {name} As vLLM's.", f"# TYPE {name} {kind}", f"{name}{labels} {value}"]
        lines += [
            "# HELP vllm:lora_requests_info Running stats on lora requests.",
            "# TYPE vllm:lora_requests_info gauge",
        ]
        of_adapters = f'max_lora="{self.options.slots}",running_lora_adapters="{adapters}",waiting_lora_adapters=""'
        page = "\n".join([*lines, f"vllm:lora_requests_info{{{of_adapters}}} {time.time()}", ""]).encode()
        return response(200, page, b"text/plain; version=1.0.0; charset=utf-8")

    def _state(self, _request: Request, _connection: Connection) -> bytes:
        state = {
            "adapters": self.adapters,
            "loads": self.loads,
            "unloads": self.unloads,
            "count": self.count,
            "active": self.active,
            "connections": len(self.connections),
        }
        return response(200, orjson.dumps(state))

    def _order(self, request: Request, _connection: Connection) -> bytes:
        asked = orjson.loads(request.body)
        if asked["fault"] not in FAULTS:
            raise Refusal(400, f"no such fault: {asked['fault']}")
        self.faults.order(asked["fault"], asked.get("work", "generate"), asked.get("times", 1))
        return response(200, b"{}")

    def _pace(self, request: Request, _connection: Connection) -> bytes:
        """Change how long things take: delay_ms, chunk_ms, load_ms."""
        self.options = replace(self.options, **orjson.loads(request.body))
        return response(200, b"{}")

    def _left(self, prompt: Sequence[int]) -> int:
        if len(prompt) > self.options.context:
            raise Refusal(
                400,
                f"This model's maximum context length is {self.options.context} tokens. However, your prompt contains "
                f"{len(prompt)} input tokens, which exceeds this limit even without any output tokens. Please reduce "
                "the length of the input prompt.",
                param="input_tokens",
            )
        return self.options.context - len(prompt)


def _before(fault: Fault | None) -> None:
    """Fail before the first byte."""
    if fault == "error":
        raise Refusal(500, "Internal server error", "InternalServerError")
    if fault == "busy":
        raise Refusal(503, "The server is overloaded.", "ServiceUnavailableError")


def _request_id(request: Request) -> str:
    named = request.headers.get(b"x-request-id")
    return os.urandom(8).hex() if named is None else named.decode()


def _call(
    choice: str | dict[str, Any] | None, tools: Sequence[dict[str, Any]], messages: Sequence[dict[str, Any]]
) -> tuple[str, str] | None:
    """The call that is made where tools are offered: of the one named, else the first, with the last message's text."""
    if not tools or choice == "none" or messages[-1]["role"] == "tool":
        return None
    name = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
    return name, orjson.dumps({"text": str(messages[-1].get("content"))}).decode()

"""Engines for clients: one that does with every option what may be expected, and one that is trouble on request."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from gateway.engines import Delta, EngineUnavailable, GenerationRequest
from tests.fakes import FakeEngine
from tests.raw_fake import RawFakeEngine


@dataclass(kw_only=True)
class ObedientEngine(RawFakeEngine):
    """Says `text`, or `json_text` where JSON is wanted, or calls the tools that it may with `arguments`.

    With tools it calls the first, or the one that it must, or all when it must and may call several at once; after a
    tool has answered it says `text`, unless it must call again.
    """

    arguments: str = '{"city": "Mole"}'
    json_text: str = '{"kind": "person", "sure": true}'

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.begun += 1
        names = _called(request)
        wants_json = request.options.get("response_format", {"type": "text"})["type"] != "text"
        speaker = RawFakeEngine(
            text="" if names else self.json_text if wants_json else self.text,
            calls=tuple((name, self.arguments) for name in names),
            delay_s=self.delay_s,
            fail_after=self.fail_after,
            down=self.down,
            prompts=self.prompts,
            requests=self.requests,
        )
        async with aclosing(speaker.generate(request)) as deltas:
            async for delta in deltas:
                yield delta


def _called(request: GenerationRequest) -> list[str]:
    choice = request.options.get("tool_choice", "auto")
    answered = bool(request.messages) and request.messages[-1].role == "tool"
    if not request.tools or choice == "none" or (answered and choice == "auto"):
        return []
    if isinstance(choice, dict):
        return [choice["function"]["name"]]
    names = [tool["function"]["name"] for tool in request.tools]
    return names if choice == "required" and request.options.get("parallel_tool_calls") is not False else names[:1]


@dataclass(kw_only=True)
class TroubledEngine(FakeEngine):
    """Does what the last line of a prompt asks for: `fail once: …` (each such text once), `slowly`, or `break off`."""

    failed: set[str] = field(default_factory=set)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        asked = request.messages[-1].content if request.messages else ""
        if asked.startswith("fail once") and asked not in self.failed:
            self.failed.add(asked)
            raise EngineUnavailable("told to fail once")
        speaker = FakeEngine(
            text=self.text,
            delay_s=0.2 if asked == "slowly" else self.delay_s,
            fail_after=3 if asked == "break off" else self.fail_after,
            down=self.down,
            prompts=self.prompts,
        )
        try:
            async with aclosing(speaker.generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.abandoned += speaker.abandoned

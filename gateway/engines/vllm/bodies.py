"""What a vLLM server is asked, in OpenAI's form and its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.engines.base import GenerationRequest
from gateway.grounding import Message

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# What of OpenAI's both routes take beyond SamplingParams. Nothing of vLLM's own is among it: by those fields a caller
# could read what another asked, or end the server.
OPTIONS = frozenset(
    {"frequency_penalty", "logit_bias", "logprobs", "n", "parallel_tool_calls", "presence_penalty", "response_format",
     "tool_choice", "tools", "top_logprobs"}
)  # fmt: skip


def generation(
    request: GenerationRequest, *, model: str, priorities: bool, disarm: Callable[[str], str]
) -> tuple[str, dict[str, Any]]:
    """The route and the body that ask for an answer. model: the server's name for it."""
    sampling = request.sampling
    body: dict[str, Any] = {
        **request.options,
        "model": model,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = sampling.stop
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if priorities and request.priority:
        body["priority"] = request.priority
    if request.messages is None:
        return COMPLETIONS, body | {"prompt": request.prompt}
    body["messages"] = conversation(request.messages, disarm)
    if request.tools:
        body["tools"] = request.tools
    return CHAT, body


def rendering(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, model: str, disarm: Callable[[str], str]
) -> dict[str, Any]:
    """The body that asks for a conversation's token ids."""
    body: dict[str, Any] = {"model": model, "messages": conversation(messages, disarm)}
    return body | {"tools": tools} if tools else body


def conversation(messages: Sequence[Message], disarm: Callable[[str], str]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form."""
    return [{**message.more, "role": message.role, "content": disarm(message.content)} for message in messages]

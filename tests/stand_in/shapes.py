"""vLLM 0.32's answers, byte for byte: the order of its keys, its compact separators, what it leaves out when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tests.stand_in.model import Choice

FINGERPRINT = "vllm-0.32.0-5ta4d1n0"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A request to generate, read. ids: token ids are wanted. top: of log-probabilities, None for none at all.

    call: name of the tool that is to be called, with arguments as they are to be written.
    """

    id: str
    created: int
    model: str
    adapter: str | None
    prompt: Sequence[int]
    choices: tuple[Choice, ...]
    ids: bool
    stream: bool
    usage: bool
    top: int | None = None
    call: tuple[str, str] | None = None


def usage(ask: Ask) -> dict[str, int]:
    """Token counts, in vLLM's order."""
    completion_tokens = sum(len(choice.ids) for choice in ask.choices)
    prompt_tokens = len(ask.prompt)
    total_tokens = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total_tokens, "completion_tokens": completion_tokens}


def error(message: str, kind: str, code: int, param: str | None = None) -> bytes:
    """The body of a refusal."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


# It comes from json.dumps with its own separators, where every other event comes from pydantic.
ERROR_EVENT = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, '
    b'"code": 500}}\n\n'
)


class Chat:
    """/v1/chat/completions."""

    @staticmethod
    def steps(ask: Ask) -> list[list[bytes]]:
        """The events of the stream, `[DONE]` excepted, by the step of the model that brings them about."""
        head = b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            ask.id.encode(),
            ask.created,
            orjson.dumps(ask.model),
        )

        def event(index: int, choice: Choice, place: int) -> bytes:
            delta = _chat_delta(choice, place, ask.call)
            logprobs = b"null"
            if ask.top is not None:
                logprobs = orjson.dumps({"content": [_chat_logprob(choice, place, ask.top)]})
            finish = b"null" if place < len(choice.ids) - 1 else _finish(choice, ask.call)
            ids = b"[%d]" % choice.ids[place] if ask.ids else b"null"
            return b'%b{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b,"token_ids":%b}]}\n\n' % (
                head,
                index,
                delta,
                logprobs,
                finish,
                ids,
            )

        prompt = orjson.dumps(ask.prompt) if ask.ids else b"null"
        # vLLM says whose turn it is when the first token is there, and not before.
        roles = [
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
            b'"prompt_token_ids":%b,"prompt_text":null}\n\n' % (head, index, prompt)
            for index in range(len(ask.choices))
        ]
        return _with_usage(ask, head, roles, event)

    @staticmethod
    def whole(ask: Ask) -> bytes:
        """The body of an answer that is not streamed."""
        body: dict[str, Any] = {
            "id": ask.id,
            "object": "chat.completion",
            "created": ask.created,
            "model": ask.model,
            "choices": [_chat_choice(ask, index, choice) for index, choice in enumerate(ask.choices)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _whole_usage(ask),
            "prompt_logprobs": None,
            "prompt_token_ids": ask.prompt if ask.ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return orjson.dumps(body)


class Completion:
    """/v1/completions."""

    @staticmethod
    def steps(ask: Ask) -> list[list[bytes]]:
        """The events of the stream, `[DONE]` excepted, by the step of the model that brings them about."""
        head = b'data: {"id":"%b","object":"text_completion","created":%d,"model":%b,"choices":[' % (
            ask.id.encode(),
            ask.created,
            orjson.dumps(ask.model),
        )

        def event(index: int, choice: Choice, place: int) -> bytes:
            logprobs = b"null" if ask.top is None else orjson.dumps(_completion_logprobs(choice, place, place + 1))
            finish = b'null,"stop_reason":null' if place < len(choice.ids) - 1 else _finish(choice, None)
            prompt = orjson.dumps(ask.prompt) if ask.ids and place == 0 else b"null"
            ids = b"[%d]" % choice.ids[place] if ask.ids else b"null"
            return (
                b'%b{"index":%d,"text":"%b","logprobs":%b,"finish_reason":%b,"prompt_token_ids":%b,"token_ids":%b}]}\n\n'
                % (head, index, choice.escaped[place], logprobs, finish, prompt, ids)
            )

        return _with_usage(ask, head, [], event)

    @staticmethod
    def whole(ask: Ask, prompt_logprobs: list[dict[str, Any] | None] | None = None) -> bytes:
        """The body of an answer that is not streamed."""
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": None if ask.top is None else _completion_logprobs(choice, 0, len(choice.ids)),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": choice.ids if ask.ids else None,
                "prompt_logprobs": prompt_logprobs,
                "prompt_token_ids": ask.prompt if ask.ids else None,
                "routed_experts": None,
            }
            for index, choice in enumerate(ask.choices)
        ]
        body = {
            "id": ask.id,
            "object": "text_completion",
            "created": ask.created,
            "model": ask.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _whole_usage(ask),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return orjson.dumps(body)


def generated(ask: Ask, prompt_logprobs: list[dict[str, Any] | None] | None) -> bytes:
    """The body of /inference/v1/generate."""
    choices = [
        {
            "index": index,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids,
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": None,
            "logprobs": None,
        }
        for index, choice in enumerate(ask.choices)
    ]
    body = {
        "request_id": ask.id,
        "model": ask.model,
        "created": ask.created,
        "usage": _whole_usage(ask),
        "prompt_logprobs": prompt_logprobs,
        "prompt_token_id_logprobs": None,
        "prompt_token_ids": ask.prompt if ask.ids else None,
        "mm_placeholders": None,
        "metrics": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "output_mode": "tokens",
        "choices": choices,
    }
    return orjson.dumps(body)


def scored(ids: Sequence[int], values: Iterable[float], *, text: bool) -> list[dict[str, Any] | None]:
    """Log-probabilities of a prompt. text: the standard route also decodes each token."""
    rows: list[dict[str, Any] | None] = [
        {str(i): {"logprob": value, "rank": 1 + int(-value * 50), "decoded_token": f" t{i}" if text else None}}
        for i, value in zip(ids, values, strict=True)
    ]
    rows[0] = None
    return rows


def model_card(name: str, *, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
    """One line of /v1/models."""
    permission = {
        "id": "modelperm-0000000000000000",
        "object": "model_permission",
        "created": 1_700_000_000,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": context,
        "permission": [permission],
    }


def _with_usage(
    ask: Ask, head: bytes, opening: list[bytes], event: Callable[[int, Choice, int], bytes]
) -> list[list[bytes]]:
    """Each step brings a token of every choice that goes on; the last also the usage, or whose fingerprint it is."""
    steps = [
        [event(index, choice, place) for index, choice in enumerate(ask.choices) if place < len(choice.ids)]
        for place in range(max(len(choice.ids) for choice in ask.choices))
    ]
    steps[0] = opening + steps[0]
    fingerprint = b'"system_fingerprint":"%b"}\n\n' % FINGERPRINT.encode()
    if ask.usage:
        steps[-1].append(b'%b],"usage":%b,%b' % (head, orjson.dumps(usage(ask)), fingerprint))
    else:
        steps[-1][-1] = steps[-1][-1].removesuffix(b"}\n\n") + b"," + fingerprint
    return steps


def _whole_usage(ask: Ask) -> dict[str, Any]:
    return {**usage(ask), "prompt_tokens_details": None, "completion_tokens_details": None}


def _finish(choice: Choice, call: tuple[str, str] | None) -> bytes:
    reason = "tool_calls" if call and choice.finish_reason == "stop" else choice.finish_reason
    return b'"%b","stop_reason":%b' % (reason.encode(), orjson.dumps(choice.stop_reason))


def _chat_delta(choice: Choice, place: int, call: tuple[str, str] | None) -> bytes:
    if call is None:
        return b'"content":"%b"' % choice.escaped[place]
    name, arguments = (orjson.dumps(part) for part in call)
    if place == 0:
        return (
            b'"tool_calls":[{"id":"chatcmpl-tool-0","type":"function","index":0,"function":{"name":%b,"arguments":""}}]'
            % name
        )
    if place == 1:
        return b'"tool_calls":[{"index":0,"function":{"arguments":%b}}]' % arguments
    return b""


def _chat_choice(ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text if ask.call is None else "",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if ask.call is not None:
        name, arguments = ask.call
        function = {"name": name, "arguments": arguments}
        message["tool_calls"] = [{"id": f"chatcmpl-tool-{index}", "type": "function", "function": function}]
    message["reasoning"] = None
    content = None if ask.top is None else [_chat_logprob(choice, at, ask.top) for at in range(len(choice.ids))]
    return {
        "index": index,
        "message": message,
        "logprobs": None if content is None else {"content": content},
        "finish_reason": "tool_calls" if ask.call else choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.ids if ask.ids else None,
        "routed_experts": None,
    }


def _logprob(choice: Choice, place: int) -> float:
    return math.log(1 / (1 + choice.ids[place] % 7 + place % 3))


def _chat_logprob(choice: Choice, place: int, top: int) -> dict[str, Any]:
    piece = choice.pieces[place]
    own = {"token": piece, "logprob": _logprob(choice, place), "bytes": list(piece.encode())}
    others = [{"token": f"x{i}", "logprob": -5.0 - i, "bytes": list(b"x%d" % i)} for i in range(1, top)]
    return own | {"top_logprobs": [own, *others][:top]}


def _completion_logprobs(choice: Choice, start: int, end: int) -> dict[str, Any]:
    offsets, at = [], sum(map(len, choice.pieces[:start]))
    for piece in choice.pieces[start:end]:
        offsets.append(at)
        at += len(piece)
    values = [_logprob(choice, place) for place in range(start, end)]
    pieces = choice.pieces[start:end]
    return {
        "text_offset": offsets,
        "token_logprobs": values,
        "tokens": pieces,
        "top_logprobs": [{piece: value} for piece, value in zip(pieces, values, strict=True)],
    }

"""What vLLM 0.32 writes, byte for byte in its form, for answers that tests make up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def event(value: object) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def envelope(kind: str, model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-req_1", "object": kind, "created": 1795569366, "model": model}


def chat_chunk(model: str, choice: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return envelope("chat.completion.chunk", model) | {"choices": [choice], **more}


def opening(model: str, index: int, prompt: Sequence[int]) -> dict[str, Any]:
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    return chat_chunk(model, choice, prompt_token_ids=list(prompt), prompt_text=None)


def said(
    model: str, index: int, text: str, ids: Sequence[int], reason: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": reason}
    ending = {} if reason is None else {"stop_reason": None}
    return chat_chunk(model, choice | ending | {"token_ids": list(ids)})


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def usage_chunk(model: str, prompt: int, completion: int) -> dict[str, Any]:
    counted = usage(prompt, completion)
    return envelope("chat.completion.chunk", model) | {
        "choices": [],
        "usage": counted,
        "system_fingerprint": "vllm-0.32.0-567ca65a",
    }


def chat_whole(
    model: str, prompt: Sequence[int], answers: Sequence[tuple[str, Sequence[int], str]], **more: Any
) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": None},
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": list(ids),
            "routed_experts": None,
        }
        for index, (text, ids, reason) in enumerate(answers)
    ]
    counted: dict[str, Any] = usage(len(prompt), sum(len(ids) for _, ids, _ in answers))
    return envelope("chat.completion", model) | {
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": "vllm-0.32.0-567ca65a",
        "usage": counted | {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": 0}},
        "prompt_logprobs": None,
        "prompt_token_ids": list(prompt),
        "prompt_text": None,
        "kv_transfer_params": None,
        **more,
    }


def completion_whole(
    model: str, prompt: Sequence[int], answers: Sequence[tuple[str, Sequence[int], str]], tops: Any = None
) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "text": text,
            "logprobs": tops and {"text_offset": [0], "token_logprobs": [-1.0], "tokens": [text], "top_logprobs": tops},
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": list(ids),
            "prompt_logprobs": None,
            "prompt_token_ids": list(prompt),
            "routed_experts": None,
        }
        for index, (text, ids, reason) in enumerate(answers)
    ]
    counted = usage(len(prompt), sum(len(ids) for _, ids, _ in answers))
    return envelope("text_completion", model) | {
        "choices": choices,
        "service_tier": None,
        "usage": counted,
        "kv_transfer_params": None,
    }

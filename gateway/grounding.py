"""How retrieved passages enter a conversation.

One pure function, because three things must agree to the token: what the engine generated from, what attribution
ablates, and what the demo's adapter was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DEFAULT_INSTRUCTION = "Answer the question in one sentence."


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation: role is `system`, `user`, `assistant` or `tool`.

    more: what else OpenAI's form of it has, such as the calls of an assistant or the call that a tool answers.
    """

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What of a passage the model reads."""

    title: str
    text: str


def ground(messages: Sequence[Message], sources: Sequence[Source], instruction: str) -> list[Message]:
    """Put the served model's instruction and the sources, in their given order, before the conversation.

    The caller's own system messages follow the sources. With no sources the instruction remains, so that removing a
    document changes nothing but that document.
    """
    documents = "".join(f"\n\nDocument: {source.title}\n{source.text}" for source in sources)
    callers = "".join(f"\n\n{message.content}" for message in messages if message.role == "system")
    system = Message(role="system", content=f"{instruction}{documents}{callers}")
    return [system, *(message for message in messages if message.role != "system")]

"""What the gateway asks of an engine: conversations and token ids in, token ids and log-probabilities out.

The protocol is narrow and shares no state, so that an engine may be a thread of this process, a server elsewhere, or a
fleet of servers. An engine renders and says which ids it read and emitted; later those same ids are scored.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.grounding import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway.engines.adapters import AdapterFiles

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class EngineError(Exception):
    """Base of what an engine refuses or fails to do."""


class EngineUnavailable(EngineError):  # noqa: N818  errors here say what is so, as in h11 and the standard library's Timeout
    """The engine's fault: it is closed, or failed in the middle. Another engine, or a later try, may answer."""


class PromptTooLong(EngineError):  # noqa: N818
    """The caller's fault: the prompt does not fit the context. Raised before any work."""

    def __init__(self, *, tokens: int, limit_tokens: int) -> None:
        self.tokens = tokens
        self.limit_tokens = limit_tokens
        super().__init__(
            f"the prompt has {tokens} tokens, and at most {limit_tokens} fit the model's context; shorten it"
        )


class EngineRefused(EngineError):  # noqa: N818
    """The caller's fault: the engine does not take what was asked. param: the field at fault, where it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


class AdapterRejected(EngineError):  # noqa: N818
    """The adapter's maker's fault: its files are unsafe, malformed, for another base, or change nothing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class AdapterNotLoaded(EngineError):  # noqa: N818
    """The gateway's fault: it named an adapter that is not resident. Load it first."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"adapter {name} is not resident in the engine")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the next token, and when to stop.

    max_tokens ≥ 1. temperature from 0 (greedy) to 2. top_p in (0, 1]. A seed repeats the choice of tokens for the same
    prompt, adapter and engine, up to rounding where the engine batches. stop: non-empty strings; the answer ends
    before the first that appears.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must lie between 0 and 2, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not all(self.stop):
            raise ValueError("a stop sequence must not be empty")


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What an engine is asked to continue: a conversation that it renders, or a prompt as it stands; exactly one.

    request_id: ours; an engine that names its work names it so. model: what the client is told that it speaks to.
    prompt: text, control tokens included, or token ids. adapter: the resident name of a LoRA. tools: the functions
    offered, as OpenAI writes them. options: further fields of OpenAI's that were checked, all among the engine's own
    `options`. stream: the answer is wanted as events. priority: lower goes first, where the engine keeps a queue.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str | None = None
    sampling: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("a request is a conversation or a prompt")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one step of a generation added to one of its choices.

    Over a whole generation the ids are the answer: what is billed, and what attribution scores. Whether the token that
    ends a turn is among them is the engine's to say; tokens past a stop sequence are not, where the engine hides them.
    Text and ids that may still turn out to belong to a stop sequence or to half a character are held back together.
    finish_reason is None on every delta of a choice but its last. index: of the choice.

    prompt_ids: what the engine read; on the first delta, and on no other. raw: the delta as the engine itself wrote it
    in OpenAI's form, for an engine that does: whole server-sent events where a stream was asked for, else one object,
    which comes with the last choice's delta. It says of ids, usage and attribution nothing; those are the gateway's to
    add. text: what the ids say. It is empty where raw says it, because most answers are passed on without being read.
    """

    token_ids: tuple[int, ...]
    text: str = ""
    finish_reason: FinishReason | None = None
    index: int = 0
    prompt_ids: tuple[int, ...] | None = None
    raw: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """logprobs: float64 (n_prompts, n_answer), nats. tokens_processed: tokens the model was run on to find them."""

    logprobs: NDArray[np.float64]
    tokens_processed: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether the engine takes work, and how much it has: callers being answered, callers waiting, scorings open.

    kv_used: part of the KV cache in use, from 0 to 1, where the engine tells.
    """

    ready: bool
    generating: int
    waiting: int
    scoring: int
    kv_used: float = 0.0


class Engine(Protocol):
    """A base model with adapters that can be loaded onto it."""

    @property
    def name(self) -> str:
        """Kind of engine, such as `embedded`."""
        ...

    @property
    def version(self) -> str:
        """Version of the software that computes the log-probabilities."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of the weights: `fp32` or `bf16`."""
        ...

    @property
    def base_model(self) -> str:
        """Name of the base model."""
        ...

    @property
    def base_digest(self) -> str:
        """SHA-256 hex of the base model's weights."""
        ...

    @property
    def context_tokens(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        ...

    @property
    def noise_nats(self) -> float:
        """Standard error of one scored answer's log-likelihood, from rounding alone."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """OpenAI's names of the request fields that it takes beyond SamplingParams, such as `tools` or `logprobs`."""
        ...

    async def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins."""
        ...

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands, control tokens included."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream an answer.

        The first delta carries the prompt's ids and may carry nothing else. Each choice's last carries its finish
        reason, and after the last choice's the iterator ends. The answer is cut to what the context leaves, with finish
        reason `length`. Close the iterator to stop early (`contextlib.aclosing`). Before the first delta it raises
        PromptTooLong, AdapterNotLoaded or EngineRefused, and EngineUnavailable at any step.
        """
        ...

    async def score(self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None) -> Scores:
        """Log-probability of each token of one answer after each of several prompts, by teacher forcing.

        prompts: token ids, each of at least one. answer: token ids, at least one. Generations go first.
        Raises PromptTooLong when a prompt with the answer exceeds the context, AdapterNotLoaded, EngineUnavailable.
        """
        ...

    async def load(self, adapter: AdapterFiles) -> None:
        """Make an adapter resident under its content-addressed name; nothing happens if it already is.

        Raises AdapterRejected when it does not fit the base, or leaves the base's log-probabilities as they were.
        """
        ...

    async def unload(self, name: str) -> None:
        """Refuse new work for an adapter, let running work finish, then free it. Raises AdapterNotLoaded."""
        ...

    def resident(self) -> frozenset[str]:
        """Names of the adapters that take work now."""
        ...

    async def health(self) -> Health:
        """How the engine fares. Raises nothing: an engine that cannot answer is not ready."""
        ...

    async def close(self) -> None:
        """Stop: work in progress ends with EngineUnavailable. Closing twice is closing once."""
        ...

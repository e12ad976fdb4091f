"""OpenAI's request bodies as this gateway takes them: read once, bounded, strictly typed.

A field that is not listed is refused rather than ignored, so that nobody pays for an answer that quietly left out what
they asked for.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import orjson
from fastapi import Request
from pydantic import AfterValidator, BaseModel, Field, StrictInt, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from gateway.api.messages import TEXT_MAX, TOOLS_MAX, Body, ChatMessage, ResponseFormat, Tool, ToolChoice, misfit
from gateway.api.wire import read_body
from gateway.errors import BadRequestError
from gateway.settings import Limits

AnyBody = TypeVar("AnyBody", bound=BaseModel)
Stop = Annotated[str, Field(max_length=200)]
ModelName = Annotated[str, Field(max_length=256)]
Label = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"]
Corpora = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)]
TokenCount = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]

CHOICES_MAX = 8
UNSUPPORTED = "unsupported_parameter"
SCHEMA_REFERENCE = "#/components/schemas/{model}"


class StreamOptions(Body):
    """What a stream adds."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class AttributionOptions(Body):
    """When the attribution is worked out: after the answer, or before the last byte of it."""

    mode: Literal["async", "inline"] | None = None


class _Generation(Body):
    # The options of an engine, each with the value that changes nothing. `null` never does.
    NEUTRAL: ClassVar[dict[str, Any]] = {"n": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0}

    model: ModelName
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=CHOICES_MAX)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=300),
        ]
        | None
    ) = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    attribution: AttributionOptions | None = None
    # Taken so that clients which send them work; they change nothing about an answer.
    user: Label | None = None
    metadata: Metadata | None = None
    store: Literal[False] | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise misfit("stream_options", "it needs stream to be true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, empty ones left out."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    def options(self) -> dict[str, Any]:
        """The options with an effect, just as they were written."""
        asked = self.model_fields_set & self.NEUTRAL.keys()
        if not asked:
            return {}
        written = self.model_dump(include=asked, exclude_unset=True, by_alias=True)
        return {name: value for name, value in written.items() if value not in (None, self.NEUTRAL[name])}


class ChatRequest(_Generation):
    """The body of /v1/chat/completions."""

    NEUTRAL: ClassVar[dict[str, Any]] = _Generation.NEUTRAL | {
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logprobs": False,
        "top_logprobs": 0,
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_completion_tokens: TokenCount | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS_MAX)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    corpora: Corpora | None = Field(default=None, description="of the served model's corpora, those to search")
    top_k: Annotated[StrictInt, Field(ge=1, le=32)] | None = Field(default=None, description="passages to read")

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise misfit("max_tokens", "give max_completion_tokens or max_tokens, not both")
        if self.top_logprobs and not self.logprobs:
            raise misfit("top_logprobs", "it needs logprobs to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise misfit("tools", "two of them have one name")
        if isinstance(self.tool_choice, str) and self.tool_choice == "required" and not names:
            raise misfit("tool_choice", "it needs tools to choose from")
        if self.tool_choice is not None and not isinstance(self.tool_choice, str):
            name = self.tool_choice.function.name
            if name not in names:
                raise misfit("tool_choice", f"the function {name!r} is not among the tools")
        return self

    def options(self) -> dict[str, Any]:
        """The options with an effect, just as they were written; without tools, how to choose among them has none."""
        found = super().options()
        if not self.tools:
            found.pop("tool_choice", None)
            found.pop("parallel_tool_calls", None)
        return found


class CompletionRequest(_Generation):
    """The body of /v1/completions; one prompt, as text or as token ids."""

    NEUTRAL: ClassVar[dict[str, Any]] = _Generation.NEUTRAL | {"logprobs": None}

    prompt: (
        Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=TEXT_MAX)]
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


def check_taken(body: ChatRequest | CompletionRequest, options: dict[str, Any], taken: frozenset[str]) -> None:
    """Refuse what the engine would leave out. options: those of the body with an effect. taken: the engine's own.

    Raises BadRequestError that names the first.
    """
    refused = [name for name in options if name not in taken]
    if isinstance(body, ChatRequest) and "tools" not in taken:
        if body.tools:
            refused.append("tools")
        refused += [f"messages.{place}" for place, message in enumerate(body.messages) if message.is_of_tools]
    if refused:
        param = refused[0]
        raise BadRequestError(f"{param}: the engine behind this model does not take it", param, UNSUPPORTED)


class EmbeddingRequest(Body):
    """The body of /v1/embeddings."""

    model: ModelName
    input: (
        Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def _is_rating(value: int) -> int:
    if value not in (-1, 1):
        raise ValueError("it must be 1 or -1")
    return value


class FeedbackRequest(Body):
    """The body of /v1/feedback."""

    request_id: Annotated[str, Field(max_length=40)]
    rating: Annotated[StrictInt, AfterValidator(_is_rating), Field(json_schema_extra={"enum": [-1, 1]})]
    comment: Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")] | None = None


def body_schemas(*more: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of every body that a route reads for itself, for the OpenAPI document. more: kinds of them."""
    kinds: list[type[BaseModel]] = [ChatRequest, CompletionRequest, EmbeddingRequest, FeedbackRequest, *more]
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=SCHEMA_REFERENCE)
    found: dict[str, Any] = schemas["$defs"]
    return found


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI fragment of a route that reads its own body."""
    schema = {"$ref": SCHEMA_REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


# pydantic names the branch of a union in a fault's place; clients know only fields and positions.
_BRANCH = re.compile(r"str|constrained-str|dict|list|none|.*\[.*\].*|[A-Z]\w*")
_PARAM_MAX = 200  # a name that a client made up may be as long as its body


def decode(body: bytes) -> Any:
    """Read a body as JSON; raises BadRequestError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None


async def read_document(request: Request, limits: Limits) -> Any:
    """Read a request's body, in time, as JSON; raises BadRequestError."""
    return decode(await read_body(request.receive, limit_bytes=limits.body_bytes, within_s=limits.body_s))


def parse(document: Any, kind: type[AnyBody]) -> AnyBody:
    """Take a body as what a route expects; raises BadRequestError that names the field."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # Of a field that may be one of several things, a fault inside the right one says more than "not the other".
        fault = next((fault for fault in faults if not fault["type"].endswith("_type")), faults[0])
        places = [str(part) for part in fault["loc"] if not _BRANCH.fullmatch(str(part))]
        if fault["type"] == "misfit":
            places.append(fault["ctx"]["param"])
        param = ".".join(places)[:_PARAM_MAX] or None
        unknown = fault["type"] == "extra_forbidden"
        message = "this field is not supported here" if unknown else fault["msg"].removeprefix("Value error, ")
        code = UNSUPPORTED if unknown else None
        raise BadRequestError(f"{param}: {message}" if param else message, param, code) from None


def encode_vector(vector: Any, encoding_format: str) -> list[float] | str:
    """A float32 vector as the client asked for it: numbers, or base64 of little-endian bytes."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]

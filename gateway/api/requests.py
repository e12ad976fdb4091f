"""OpenAI's request bodies as this gateway takes them: read once, bounded, strictly typed.

A field that is not listed is refused rather than ignored, so that nobody pays for an answer that quietly left out what
they asked for.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal, Self, TypeVar

import orjson
from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from gateway.api.wire import read_body
from gateway.errors import BadRequestError
from gateway.settings import Limits

Body = TypeVar("Body", bound=BaseModel)
Ignored = Any
Nothing = Annotated[list[Any], Field(max_length=0)] | None
Stop = Annotated[str, Field(max_length=200)]

TEXT_MAX = 1_000_000
SCHEMA_REFERENCE = "#/components/schemas/{model}"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class TextPart(_Body):
    """The only content part an engine without eyes can read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn; content is a string or text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=TEXT_MAX)] | list[TextPart] | None
    name: str | None = None
    # What an answer carries besides its text comes back with the next turn, and is empty here.
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    annotations: Nothing = None

    def text(self) -> str:
        """The content as one string."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class TextFormat(_Body):
    """The only response format there is here."""

    type: Literal["text"]


class StreamOptions(_Body):
    """What a stream adds."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class AttributionOptions(_Body):
    """When the attribution is worked out: after the answer, or before the last byte of it."""

    mode: Literal["async", "inline"] | None = None


class _Generation(_Body):
    model: str
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: StrictInt | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    attribution: AttributionOptions | None = None
    # Taken so that clients which send them work; they change nothing about an answer.
    user: Ignored = None
    metadata: Ignored = None
    store: Literal[False] | None = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, empty ones left out."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)


class ChatRequest(_Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    tools: Nothing = None
    tool_choice: Literal["none"] | None = None
    response_format: TextFormat | None = None
    top_logprobs: Literal[0] | None = None
    corpora: list[str] | None = Field(default=None, description="of the served model's corpora, those to search")
    top_k: Annotated[StrictInt, Field(ge=1, le=32)] | None = Field(default=None, description="passages to read")


class CompletionRequest(_Generation):
    """The body of /v1/completions; one prompt, as text."""

    prompt: Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class EmbeddingRequest(_Body):
    """The body of /v1/embeddings."""

    model: str
    input: (
        Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Ignored = None

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def _is_rating(value: int) -> int:
    if value not in (-1, 1):
        raise ValueError("it must be 1 or -1")
    return value


class FeedbackRequest(_Body):
    """The body of /v1/feedback."""

    request_id: Annotated[str, Field(max_length=40)]
    rating: Annotated[StrictInt, AfterValidator(_is_rating), Field(json_schema_extra={"enum": [-1, 1]})]
    comment: Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")] | None = None


def body_schemas() -> dict[str, Any]:
    """The JSON schemas of every body that a route reads for itself, for the OpenAPI document."""
    kinds: list[type[BaseModel]] = [ChatRequest, CompletionRequest, EmbeddingRequest, FeedbackRequest]
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=SCHEMA_REFERENCE)
    found: dict[str, Any] = schemas["$defs"]
    return found


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI fragment of a route that reads its own body."""
    schema = {"$ref": SCHEMA_REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


# pydantic names the branch of a union in a fault's place; clients know only fields and positions.
_BRANCH = re.compile(r"str|constrained-str|dict|list|none|.*\[.*\].*")


def decode(body: bytes) -> Any:
    """Read a body as JSON; raises BadRequestError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None


async def read_document(request: Request, limits: Limits) -> Any:
    """Read a request's body, in time, as JSON; raises BadRequestError."""
    return decode(await read_body(request.receive, limit_bytes=limits.body_bytes, within_s=limits.body_s))


def parse(document: Any, kind: type[Body]) -> Body:
    """Take a body as what a route expects; raises BadRequestError that names the field."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # Of a field that may be one of several things, a fault inside the right one says more than "not the other".
        fault = next((fault for fault in faults if not fault["type"].endswith("_type")), faults[0])
        param = ".".join(str(part) for part in fault["loc"] if not _BRANCH.fullmatch(str(part))) or None
        unknown = fault["type"] == "extra_forbidden"
        message = "this field is not supported here" if unknown else fault["msg"].removeprefix("Value error, ")
        code = "unsupported_parameter" if unknown else None
        raise BadRequestError(f"{param}: {message}" if param else message, param, code) from None


def encode_vector(vector: Any, encoding_format: str) -> list[float] | str:
    """A float32 vector as the client asked for it: numbers, or base64 of little-endian bytes."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]

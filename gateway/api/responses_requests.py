"""The body of /v1/responses, and what it comes to as the conversation, the tools and the options of a question.

The route is stateless: what refers to a response, a conversation or a prompt that a server keeps is refused, and so is
whatever only OpenAI's own tools can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, StrictInt, Tag, model_validator

from gateway.api.messages import (
    DESCRIPTION_MAX,
    TOOLS_MAX,
    Body,
    FunctionName,
    Identifier,
    JsonSchema,
    Nothing,
    Text,
    misfit,
)
from gateway.api.requests import (
    UNSUPPORTED,
    AttributionOptions,
    Corpora,
    Label,
    Metadata,
    ModelName,
    ServiceTier,
    StreamOptions,
    TokenCount,
)
from gateway.errors import BadRequestError
from gateway.grounding import Message

ITEMS_MAX = 1024
LOGPROBS = "message.output_text.logprobs"

# Fields that only make sense where responses are kept, or whose effect this gateway does not have.
REFUSED = {
    "previous_response_id": "no response is kept here; send the whole conversation as input",
    "conversation": "no conversation is kept here; send the whole conversation as input",
    "prompt": "no prompt is kept here; send its text as input",
    "background": "no response is kept here to be fetched later; leave the request open, or stream it",
    "store": "no response is kept here; leave it out, or send false",
    "context_management": "a conversation is read as it was sent; shorten the input instead",
    "moderation": "nothing is moderated here",
    "reasoning": "the models here have no setting of how much they reason",
}

Ignored = Any
# OpenAI's names of what can be added to a response. All but the log-probabilities belong to items that none here has.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.action.sources",
    "web_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


class ResponseTextPart(Body):
    """Text that was said to the model or by it; what else an answer's part carries comes back and changes nothing."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None
    parsed: Ignored = None


Content = Text | Annotated[list[ResponseTextPart], Field(max_length=ITEMS_MAX)]


class MessageItem(Body):
    """One turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class FunctionCallItem(Body):
    """A function that the model called."""

    type: Literal["function_call"]
    call_id: Identifier
    name: FunctionName
    arguments: Text
    id: Ignored = None
    status: Ignored = None
    caller: None = None
    namespace: None = None
    parsed_arguments: Ignored = None

    @property
    def call(self) -> dict[str, Any]:
        """As a chat has it."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class FunctionCallOutputItem(Body):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: Identifier
    output: Content
    id: Ignored = None
    status: Ignored = None


def _branches(expected: str, default: str | None = None) -> Discriminator:
    """Choose a branch by the field `type`, so that a fault is told of that branch alone.

    The tag becomes a step in the place of the fault; its brackets mark it as none of the client's fields (see `parse`).
    """

    def tag(value: Any) -> str:
        kind = value.get("type", default) if isinstance(value, Mapping) else getattr(value, "type", None)
        return f"[{kind}]"

    return Discriminator(tag, custom_error_type="unsupported_branch", custom_error_message=expected)


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionCallOutputItem, Tag("[function_call_output]")],
    _branches("an item's type here is message, function_call or function_call_output", "message"),
]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=DESCRIPTION_MAX)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    @property
    def offered(self) -> dict[str, Any]:
        """As a chat has it."""
        described = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": described}


class FunctionChoice(Body):
    """The one function that the model must call."""

    type: Literal["function"]
    name: FunctionName


class JsonSchemaFormat(Body):
    """Answers are JSON that a schema allows."""

    type: Literal["json_schema"]
    name: FunctionName
    schema_: JsonSchema = Field(alias="schema")
    description: Annotated[str, Field(max_length=DESCRIPTION_MAX)] | None = None
    strict: bool | None = None


class TextFormat(Body):
    """Answers are text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Answers are any JSON object."""

    type: Literal["json_object"]


class TextOptions(Body):
    """The form of the text."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("[text]")]
            | Annotated[JsonObjectFormat, Tag("[json_object]")]
            | Annotated[JsonSchemaFormat, Tag("[json_schema]")],
            _branches("a format's type is text, json_object or json_schema"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Body):
    """The body of /v1/responses. Nothing is kept of it or of the response."""

    model: ModelName
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=ITEMS_MAX)]
    instructions: Text | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    include: Annotated[list[Includable], Field(max_length=16)] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    truncation: Literal["disabled"] | None = None
    attribution: AttributionOptions | None = None
    corpora: Corpora | None = Field(default=None, description="of the served model's corpora, those to search")
    top_k: Annotated[StrictInt, Field(ge=1, le=32)] | None = Field(default=None, description="passages to read")
    # Refused with a reason, in `refuse_what_is_not_here`, where they would have an effect.
    previous_response_id: Ignored = None
    conversation: Ignored = None
    prompt: Ignored = None
    background: bool | None = None
    store: bool | None = None
    context_management: Nothing = None
    moderation: Ignored = None
    reasoning: dict[str, Any] | None = None
    # Taken so that clients which send them work; they change nothing about an answer.
    user: Label | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    max_tool_calls: StrictInt | None = None  # counts OpenAI's own tools, of which there are none

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise misfit("stream_options", "it needs stream to be true")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise misfit("top_logprobs", f"it needs include to have {LOGPROBS!r}")
        names = {tool.name for tool in self.tools or ()}
        if len(names) != len(self.tools or ()):
            raise misfit("tools", "two of them have one name")
        if isinstance(self.tool_choice, FunctionChoice) and self.tool_choice.name not in names:
            raise misfit("tool_choice", f"the function {self.tool_choice.name!r} is not among the tools")
        if self.tool_choice == "required" and not names:
            raise misfit("tool_choice", "it needs tools to choose from")
        return self

    def refuse_what_is_not_here(self) -> None:
        """Raise BadRequestError for a field whose effect this gateway does not have."""
        for name, reason in REFUSED.items():
            value = getattr(self, name)
            if any(value.values()) if isinstance(value, dict) else value:
                raise BadRequestError(f"{name}: {reason}", name, UNSUPPORTED)

    @property
    def repeated(self) -> dict[str, Any]:
        """The fields that a response repeats, as they took effect."""
        text = self.text.model_dump(by_alias=True, exclude_none=True) if self.text else {}
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": {"type": "text"}} | text,
            "tool_choice": _plain(self.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
        }

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, as a chat has it; raises BadRequestError where a function's output has no call."""
        spoken = [Message(role="system", content=self.instructions)] if self.instructions else []
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        called: set[str] = set()
        for position, item in enumerate(items):
            if isinstance(item, MessageItem):
                role = "system" if item.role == "developer" else item.role
                spoken.append(Message(role=role, content=_text(item.content)))
            elif isinstance(item, FunctionCallItem):
                called.add(item.call_id)
                # A chat has what the assistant said and all that it called at once in one turn.
                last = spoken.pop() if spoken and spoken[-1].role == "assistant" else None
                calls = [*(last.more.get("tool_calls", ()) if last else ()), item.call]
                content = last.content if last else ""
                spoken.append(Message(role="assistant", content=content, more={"tool_calls": calls}))
            elif item.call_id in called:
                spoken.append(Message(role="tool", content=_text(item.output), more={"tool_call_id": item.call_id}))
            else:
                place = f"input.{position}.call_id"
                raise BadRequestError(f"{place}: no function_call before it has the call_id {item.call_id!r}", place)
        return tuple(spoken)

    @property
    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools, as a chat has them."""
        return tuple(tool.offered for tool in self.tools or ())

    @property
    def options(self) -> dict[str, Any]:
        """The fields with an effect beyond sampling, by the names and in the forms that a chat has."""
        found: dict[str, Any] = {}
        if self.tools:
            if isinstance(self.tool_choice, FunctionChoice):
                found["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
            elif self.tool_choice not in (None, "auto"):
                found["tool_choice"] = self.tool_choice
            if self.parallel_tool_calls is False:
                found["parallel_tool_calls"] = False
        if LOGPROBS in (self.include or ()):
            found["logprobs"] = True
            if self.top_logprobs:
                found["top_logprobs"] = self.top_logprobs
        wanted = self.text.format if self.text else None
        if isinstance(wanted, JsonSchemaFormat):
            schema = wanted.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif isinstance(wanted, JsonObjectFormat):
            found["response_format"] = {"type": "json_object"}
        return found


def _plain(value: BaseModel | str | None) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _text(content: str | list[ResponseTextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)

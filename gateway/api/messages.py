"""The parts of a chat request: turns of a conversation, tools and their calls, and the form of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.grounding import Message

TEXT_MAX = 1_000_000
TOOLS_MAX = 128
DESCRIPTION_MAX = 16_384
_DEPTH_MAX = 32
_VALUES_MAX = 10_000

Nothing = Annotated[list[Any], Field(max_length=0)] | None
Text = Annotated[str, Field(max_length=TEXT_MAX)]
Identifier = Annotated[str, Field(min_length=1, max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """What a client sends: strict, and without a field that is not listed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


def misfit(param: str, message: str) -> PydanticCustomError:
    """The fault of a field that does not go with the others."""
    return PydanticCustomError("misfit", "{message}", {"param": param, "message": message})


def _is_shallow(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse a schema that would cost an engine's grammar compiler more than an answer is worth."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    values = 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if isinstance(value, dict | list):
            if depth > _DEPTH_MAX:
                raise ValueError(f"it is nested more than {_DEPTH_MAX} deep")
            waiting += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
        if values + len(waiting) > _VALUES_MAX:
            raise ValueError(f"it holds more than {_VALUES_MAX} values")
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_is_shallow)]


class TextPart(Body):
    """The only content part an engine without eyes can read."""

    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    """The function that a model called. arguments: as the model wrote them, JSON if it did well."""

    name: Identifier
    arguments: Text


class ToolCall(Body):
    """A call of the assistant's, as its answer gave it."""

    id: Identifier
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    """One turn. A `tool` turn answers the call that it names; only an `assistant` turn may have no content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=TOOLS_MAX)] | None = None
    tool_call_id: Identifier | None = None
    # What an answer carries besides comes back with the next turn, and is empty here, or not read again.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Nothing = None
    reasoning: Text | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise misfit("tool_calls", "only an assistant's turn has calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise misfit("tool_call_id", "a tool's turn, and no other, names the call that it answers")
        if self.content is None and self.role != "assistant":
            raise misfit("content", "it is missing")
        return self

    @property
    def is_of_tools(self) -> bool:
        """Whether it means something only to an engine that knows tools."""
        return bool(self.tool_calls) or self.role == "tool"

    def turn(self) -> Message:
        """The turn as the engine is asked with it."""
        parts = self.content or ""
        more: dict[str, Any] = {}
        if self.name is not None:
            more["name"] = self.name
        if self.tool_calls:
            more["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            more["tool_call_id"] = self.tool_call_id
        return Message(
            role="system" if self.role == "developer" else self.role,  # OpenAI's newer name for it
            content=parts if isinstance(parts, str) else "".join(part.text for part in parts),
            more=more,
        )


class Function(Body):
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: FunctionName
    description: Annotated[str, Field(max_length=DESCRIPTION_MAX)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that is offered; there is no other kind than a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function, by its name alone."""

    name: FunctionName


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class AnswerSchema(Body):
    """The JSON schema that an answer must fit."""

    name: FunctionName
    description: Annotated[str, Field(max_length=DESCRIPTION_MAX)] | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of an answer: text, any JSON object, or one that fits json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise misfit("json_schema", "it goes with the type json_schema, and only with it")
        return self


def offered(tools: list[Tool] | None) -> tuple[Mapping[str, Any], ...]:
    """Tools as the engine is asked with them: just as they were written."""
    return tuple(tool.model_dump(exclude_unset=True) for tool in tools or ())

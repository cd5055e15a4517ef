"""The seam to language models, one method wide: a `Request` goes in, a `Reply` comes out."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field

from planner.records import Record

__all__ = ["AnswerShape", "Client", "Message", "Reply", "Request", "Rung", "Tool", "ToolCall", "Usage"]

Rung = Literal["json_schema", "json_object", "tool", "text"]
"""How a shaped answer is asked for: by a schema the server enforces, as any JSON object, as the arguments of one call
that the model must make, or in words alone."""


class ToolCall(Record):
    """A tool that the model wants to be called."""

    id: str
    """What the result is to be filed under; unique among the calls of one reply."""
    name: str
    """Which tool."""
    arguments: str
    """Its arguments as the model wrote them: JSON, if the model did well."""


class Message(Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks; `tool` for the result of a call."""
    content: str
    """What is said."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant wants to be called."""
    tool_call_id: str | None = None
    """Of a result: the call it answers."""


class Tool(Record):
    """Something that the model may ask for before it answers."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """What it is called."""
    description: str
    """What it gives, for the model."""
    parameters: dict[str, Any]
    """JSON schema of its arguments, an object."""


class AnswerShape(Record):
    """The JSON object that a model is to answer with."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """What it is called."""
    json_schema: dict[str, Any]
    """Its schema, inside the subset that strict structured output understands."""


class Request(Record):
    """What is asked of a model."""

    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far, oldest first."""
    max_output_tokens: int = Field(default=8192, gt=0)
    """The most tokens the model may write, hidden reasoning included where the provider counts it."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; null sends none, because many models refuse the parameter."""
    seed: int | None = None
    """Sampling seed; null sends none. Not every provider heeds it."""
    tools: tuple[Tool, ...] = ()
    """What the model may call instead of answering."""
    shape: AnswerShape | None = None
    """The shape of the answer; null for free text."""
    rung: Rung = "text"
    """How the shape is asked for."""
    sample: int = Field(default=0, ge=0)
    """Which of several answers to the same question this is; never sent."""


class Usage(Record):
    """What an answer cost."""

    input_tokens: int = Field(ge=0)
    """Tokens read, as the provider counted them; 0 where it did not say."""
    output_tokens: int = Field(ge=0)
    """Tokens written, as the provider counted them; 0 where it did not say."""
    cost_usd: float | None
    """US dollars by a local price list; null where the price is not known."""


class Reply(Record):
    """A complete answer; whatever was cut short, filtered or empty never becomes one."""

    text: str
    """What the model wrote; empty only beside tool calls. Of a shape asked for as a tool, that call's arguments."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tools it wants called; their ids are unique."""
    model: str
    """The model as the provider named it in its answer."""
    finish_reason: str
    """Why the model stopped, in the provider's word; empty where it gave none."""
    usage: Usage
    """Tokens and price."""
    attempts: int = Field(ge=1)
    """Transport attempts this answer took; 1 where the first one was answered."""
    rung: Rung = "text"
    """How its shape was asked for in the end."""
    cached: bool = False
    """Whether it was not asked for now but kept from an earlier run."""


class Client(Protocol):
    """Anything that can answer a `Request`."""

    @property
    def name(self) -> str:
        """The model as the user named it; a plan records it as the analyst's model."""
        ...

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """Ask once, `within_s` seconds at most; transport failures that can pass by themselves are retried inside.

        Raises `FeatureRefused` where the endpoint does not know the request's tools or rung, else
        `EndpointUnreachable`, `EndpointRefused`, `AnswerUnusable` or `KeyMissing`. KeyboardInterrupt passes through at
        once.
        """
        ...

    def close(self) -> None:
        """Let connections go."""
        ...

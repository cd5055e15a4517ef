"""The seam to language models, one method wide: a `Request` goes in, a `Reply` comes out."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from planner.records import Record

__all__ = ["Client", "Message", "Reply", "Request", "Usage"]


class Message(Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class Request(Record):
    """What is asked of a model."""

    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far, oldest first."""
    max_output_tokens: int = Field(default=8192, gt=0)
    """The most tokens the model may write, hidden reasoning included where the provider counts it."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; null sends none, because many models refuse the parameter."""


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
    """What the model wrote, never empty."""
    model: str
    """The model as the provider named it in its answer."""
    finish_reason: str
    """Why the model stopped, in the provider's word; empty where it gave none."""
    usage: Usage
    """Tokens and price."""
    attempts: int = Field(ge=1)
    """Transport attempts this answer took; 1 where the first one was answered."""


class Client(Protocol):
    """Anything that can answer a `Request`."""

    @property
    def name(self) -> str:
        """The model as the user named it; a plan records it as the analyst's model."""
        ...

    def complete(self, request: Request) -> Reply:
        """Ask once; transport failures that can pass by themselves are retried inside.

        Raises `EndpointUnreachable`, `EndpointRefused`, `AnswerUnusable` or `KeyMissing`. KeyboardInterrupt passes
        through at once.
        """
        ...

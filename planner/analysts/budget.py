"""What a conversation has used of what it may use, and what that leaves for the next request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from planner.analysts.settings import Limits, Price
from planner.errors import AnalystFailed, EndpointUnreachable, LimitReached
from planner.llm import Reply, Request
from planner.llm.tokens import estimated_tokens
from planner.plan import Usage

__all__ = ["Budget", "request_tokens", "spent"]

_PER_MESSAGE = 8
"""Tokens that the framing of one message takes, at most, in the chat formats known."""
_MOMENT_S = 0.5
_ANSWER_SHAPE = 4_000
"""Tokens that the schema of a plan takes, at most."""


def request_tokens(request: Request) -> int:
    """The estimate of what a request sends: its messages, its tools, and the shape of the answer."""
    words = sum(
        estimated_tokens(message.content + "".join(call.name + call.arguments for call in message.tool_calls))
        + _PER_MESSAGE
        for message in request.messages
    )
    described = [tool.model_dump_json() for tool in request.tools]
    if request.shape:
        described.append(request.shape.model_dump_json())
    return words + sum(map(estimated_tokens, described))


def spent(replies: Iterable[Reply], price: Price | None) -> Usage:
    """What answers took, as their providers counted; what was kept from an earlier run costs nothing now.

    The cost is the providers', or by `price` where one of them said none; null where nobody knows it.
    """
    paid = [reply.usage for reply in replies if not reply.cached]
    costs = [usage.cost_usd for usage in paid]
    sent, received = sum(usage.input_tokens for usage in paid), sum(usage.output_tokens for usage in paid)
    cost = None if None in costs else sum(cost for cost in costs if cost is not None)
    if cost is None and price:
        cost = price.of(sent, received)
    return Usage(input_tokens=sent, output_tokens=received, cost_usd=cost)


class Budget:
    """Counts tokens, dollars and seconds; cached answers cost nothing."""

    def __init__(self, limits: Limits, price: Price | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._price = price
        self._clock = clock
        self._began = clock()
        self.tokens = 0
        self.cost_usd = 0.0

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self._limits.wall_s - (self._clock() - self._began)

    def spend(self, request: Request, reply: Reply) -> None:
        """Count one answer; where the provider did not, by the estimate."""
        if reply.cached:
            return
        usage = reply.usage
        sent = usage.input_tokens or request_tokens(request)
        received = usage.output_tokens or estimated_tokens(reply.text)
        self.tokens += sent + received
        if usage.cost_usd is not None:
            self.cost_usd += usage.cost_usd
        elif self._price:
            self.cost_usd += self._price.of(sent, received)

    def blamed(self, error: EndpointUnreachable) -> AnalystFailed:
        """The error, or that the time for the whole plan is over where that is why nothing came."""
        if self.left_s > _MOMENT_S:
            return error
        return self._reached(f"{self._limits.wall_s:g} seconds for the whole plan are over", "--deadline")

    def require(self, request: Request, *, and_answer: bool = False) -> None:
        """Raises `LimitReached` where the request, with the longest answer it allows, would pass a limit.

        With `and_answer` there must be enough for the question for the plan as well, which repeats what was said.
        """
        sent = request_tokens(request)
        reserved = sent + _ANSWER_SHAPE + request.max_output_tokens if and_answer else 0
        if self.left_s <= 0:
            raise self._reached(f"{self._limits.wall_s:g} seconds for the whole plan are over", "--deadline")
        needed = sent + request.max_output_tokens + reserved
        if self.tokens + needed > self._limits.tokens:
            raise self._reached(
                f"{self.tokens:,} of {self._limits.tokens:,} tokens are used, and what comes next may take {needed:,}",
                "--max-tokens, or lower --max-output-tokens",
            )
        if self._limits.cost_usd is not None and self._price:
            most = self._price.of(sent, request.max_output_tokens) * (2 if and_answer else 1)
            if self.cost_usd + most > self._limits.cost_usd:
                raise self._reached(
                    f"{self.cost_usd:.4f} of {self._limits.cost_usd:g} US dollars are used, and what comes next may "
                    f"cost {most:.4f}",
                    "--max-cost, or lower --max-output-tokens",
                )

    @staticmethod
    def _reached(what: str, option: str) -> LimitReached:
        return LimitReached(what, hint=f"allow more with {option}")

"""The one retry layer. The SDKs below are told to retry nothing: layered retries multiply (3 x 3 x 5 = 45 attempts).

An attempt does not raise: it returns a `Reply` or a `Failure`. So the exceptions of the SDKs, whose messages, bodies
and requests hold the key, end inside the attempt, and what is raised here has no cause and no context.
"""

from __future__ import annotations

import contextvars
import datetime
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from planner.errors import AnalystFailed, EndpointUnreachable, FeatureRefused
from planner.llm.base import Reply
from planner.llm.redaction import Redactor

__all__ = ["Backoff", "Failure", "complete_with_retries", "retry_after_s", "within"]

_T = TypeVar("_T")
_YEAR_S = 365 * 86_400


@dataclass(frozen=True)
class Failure:
    """One attempt that failed."""

    kind: type[AnalystFailed]
    message: str
    hint: str
    can_pass: bool = False
    """It can pass by itself, so another attempt makes sense."""
    retry_after_s: float | None = None
    """What the endpoint asked to wait."""
    feature: str = ""
    """Of a FeatureRefused: the feature."""

    def error(self, message: str, hint: str) -> AnalystFailed:
        """What to raise for it, in these words."""
        if issubclass(self.kind, FeatureRefused):
            return self.kind(message, hint=hint, feature=self.feature)
        return self.kind(message, hint=hint)


@dataclass(frozen=True)
class Backoff:
    """How often and how patiently to try; the waits are random up to `base_s`, 2 `base_s`, 4 `base_s`, ... `cap_s`."""

    attempts: int = 4
    base_s: float = 1.0
    cap_s: float = 20.0
    longest_retry_after_s: float = 60.0
    """An endpoint that asks for more than this is not waited for: the user should decide."""


def complete_with_retries(
    attempt: Callable[[float], Reply | Failure],
    *,
    timeout_s: float,
    backoff: Backoff,
    redactor: Redactor,
    abandoned: Callable[[], None] = lambda: None,
) -> Reply:
    """Call `attempt` with the seconds left until it gives a reply, a final failure, or time or attempts are used up.

    `abandoned` is called when an attempt is left behind in its thread: at the deadline, and at Ctrl-C. Raises the
    failure's kind, redacted, with the number of attempts in its message.
    """
    # Imported here, as every library of this package: a command that asks no model should not wait for them.
    import tenacity

    if timeout_s <= 0:
        raise EndpointUnreachable("no time is left to ask the model", hint="allow more time, or ask for less")
    deadline = time.monotonic() + timeout_s
    jittered = tenacity.wait_random_exponential(multiplier=backoff.base_s, max=backoff.cap_s)
    attempts = 0
    earlier = ""

    def one() -> Reply | Failure:
        nonlocal attempts, earlier
        attempts += 1
        left = max(deadline - time.monotonic(), 0.001)
        try:
            outcome = within(left, lambda: attempt(left))
            # What went wrong before says more than that the time ran out in the end.
            earlier = f"; before that: {outcome.message}" if isinstance(outcome, Failure) else ""
            return outcome
        except TimeoutError:
            abandoned()
            return Failure(
                EndpointUnreachable,
                f"no complete answer within {timeout_s:g} s{earlier}",
                "allow more time, ask for less, or check that the server is not stuck",
            )
        except BaseException:
            abandoned()
            raise

    def worth_another(outcome: Reply | Failure) -> bool:
        if isinstance(outcome, Reply) or not outcome.can_pass:
            return False
        return (outcome.retry_after_s or 0) <= backoff.longest_retry_after_s

    def wait(state: tenacity.RetryCallState) -> float:
        outcome = _outcome(state)
        asked = outcome.retry_after_s if isinstance(outcome, Failure) else None
        return max(asked or 0.0, jittered(state))

    outcome = tenacity.Retrying(
        retry=tenacity.retry_if_result(worth_another),
        wait=wait,
        # A wait that would end after the deadline is not begun.
        stop=tenacity.stop_after_attempt(backoff.attempts) | tenacity.stop_before_delay(timeout_s),
        retry_error_callback=_outcome,
    )(one)
    if isinstance(outcome, Reply):
        return outcome.model_copy(update={"attempts": attempts})
    hint = outcome.hint if outcome.retry_after_s is None else f"{_not_before(outcome.retry_after_s)}; {outcome.hint}"
    count = f"after {attempts} attempt{'s' * (attempts != 1)}"
    raise outcome.error(redactor(f"{outcome.message} ({count})"), redactor(hint))


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """The result of `call`, or TimeoutError when it takes longer than `seconds` by the clock on the wall.

    The timeouts of HTTP libraries start anew with every byte, so a server that sends one now and then holds them for
    ever. `call` runs in a thread that is left behind when time is up; it is a daemon, so it never holds up the exit,
    and Ctrl-C reaches the waiting main thread at once.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, whatever it is
            errors.append(error)
        finally:
            done.set()

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="planner-llm", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]


def retry_after_s(value: str | None, milliseconds: str | None = None) -> float | None:
    """The seconds a Retry-After header asks for, as a number or as an HTTP date; None for anything else.

    `milliseconds` is the retry-after-ms header that OpenAI sends beside it, more exact where it is a number.
    """
    try:
        exact = float(milliseconds or "") / 1000
    except ValueError:
        exact = math.nan
    if not math.isfinite(exact) and value is None:
        return None
    try:
        seconds = exact if math.isfinite(exact) else float(value or "")
    except ValueError:
        seconds = _seconds_until(value or "")
    return min(max(seconds, 0.0), float(_YEAR_S)) if math.isfinite(seconds) else None


def _seconds_until(http_date: str) -> float:
    try:
        when = parsedate_to_datetime(http_date)
    except ValueError:
        return math.nan
    # RFC 9110: an HTTP date is in GMT, whether or not it says so.
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return (when - datetime.datetime.now(datetime.UTC)).total_seconds()


def _not_before(seconds: float) -> str:
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return f"try again after {when:%Y-%m-%d %H:%M:%S} UTC ({math.ceil(seconds)} s from now)"


def _outcome(state: object) -> Reply | Failure:
    outcome: Reply | Failure = state.outcome.result()  # type: ignore[attr-defined]
    return outcome

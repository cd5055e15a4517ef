import datetime
import time
from email.utils import format_datetime

import pytest

from planner.errors import EndpointRefused, EndpointUnreachable
from planner.llm.base import Reply, Usage
from planner.llm.redaction import Redactor
from planner.llm.retries import Backoff, Failure, complete_with_retries, retry_after_s, within

REPLY = Reply(
    text="a", model="m", finish_reason="stop", usage=Usage(input_tokens=0, output_tokens=0, cost_usd=None), attempts=1
)
PASSING = Failure(EndpointRefused, "busy secret-key", "wait secret-key", can_pass=True)
FAST = Backoff(base_s=0.001, cap_s=0.002)


def run(*outcomes, timeout_s=10.0, backoff=FAST):
    """The outcome of complete_with_retries, and the seconds left at each attempt."""
    left = []

    def attempt(seconds):
        left.append(seconds)
        outcome = outcomes[len(left) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    try:
        return (
            complete_with_retries(attempt, timeout_s=timeout_s, backoff=backoff, redactor=Redactor(["secret-key"])),
            left,
        )
    except EndpointRefused as error:
        return error, left


def test_the_reply_counts_the_attempts():
    assert run(REPLY)[0].attempts == 1
    assert run(PASSING, PASSING, REPLY)[0].attempts == 3


def test_four_attempts_and_no_more():
    error, left = run(*[PASSING] * 4)
    assert len(left) == 4
    assert error.message == "busy [redacted] (after 4 attempts)"
    assert error.hint == "wait [redacted]"
    assert error.__cause__ is None
    assert error.__context__ is None
    assert left == sorted(left, reverse=True)


def test_a_final_failure_is_not_retried():
    error, left = run(PASSING, Failure(EndpointRefused, "no", "hint"))
    assert len(left) == 2
    assert error.message == "no (after 2 attempts)"
    assert run(Failure(EndpointRefused, "no", "hint"))[0].message == "no (after 1 attempt)"


def test_a_short_retry_after_is_honoured():
    began = time.monotonic()
    reply, _ = run(Failure(EndpointRefused, "busy", "h", can_pass=True, retry_after_s=0.3), REPLY)
    assert reply.attempts == 2
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(("retry_after", "timeout_s"), [(61.0, 600.0), (2.0, 1.0)])
def test_a_retry_after_that_is_too_long_or_ends_after_the_deadline_fails_at_once(retry_after, timeout_s):
    began = time.monotonic()
    error, left = run(
        Failure(EndpointRefused, "busy", "wait", can_pass=True, retry_after_s=retry_after), timeout_s=timeout_s
    )
    assert len(left) == 1
    assert time.monotonic() - began < 0.5
    assert f"({retry_after:.0f} s from now); wait" in error.hint
    assert error.hint.startswith("try again after 2")


def test_exactly_the_longest_retry_after_is_still_waited_for():
    patient = Backoff(base_s=0.001, cap_s=0.001, longest_retry_after_s=0.05)
    waiting = Failure(EndpointRefused, "busy", "h", can_pass=True, retry_after_s=0.05)
    assert run(waiting, REPLY, backoff=patient)[0].attempts == 2


def test_a_backoff_that_ends_after_the_deadline_is_not_begun():
    began = time.monotonic()
    _, left = run(*[Failure(EndpointRefused, "busy", "wait", can_pass=True, retry_after_s=0.4)] * 4, timeout_s=0.6)
    assert len(left) == 2
    assert time.monotonic() - began < 0.6


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_an_attempt_that_is_left_behind_is_told(end):
    told = []
    options = {"timeout_s": 0.2, "backoff": FAST, "redactor": Redactor([]), "abandoned": lambda: told.append(1)}
    with pytest.raises(EndpointUnreachable):
        complete_with_retries(lambda left: time.sleep(0.4), **options)
    assert told == [1]
    with pytest.raises(end):
        complete_with_retries(lambda left: (_ for _ in ()).throw(end()), **options)
    assert told == [1, 1]
    complete_with_retries(lambda left: REPLY, **options)
    assert told == [1, 1]


def test_the_deadline_is_overall():
    began = time.monotonic()

    def attempt(left):
        time.sleep(0.2)
        return PASSING

    with pytest.raises(
        EndpointUnreachable, match=r"no complete answer within 0.5 s; before that: .+ \(after 3 attempts\)"
    ):
        complete_with_retries(attempt, timeout_s=0.5, backoff=FAST, redactor=Redactor([]))
    assert time.monotonic() - began < 0.7


def test_the_waits_are_random_and_grow_to_the_cap(monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    for _ in range(40):
        run(*[PASSING] * 4, backoff=Backoff(base_s=1.0, cap_s=3.0), timeout_s=1000)
    first, second, third = waits[0::3], waits[1::3], waits[2::3]
    assert max(first) <= 1 < max(second) <= 2 < max(third) <= 3
    assert len(set(waits)) == len(waits)


def test_keyboard_interrupt_passes_untouched_at_once():
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(PASSING, interrupt, REPLY)
    assert caught.value is interrupt


def test_within_gives_results_and_errors_and_ends_on_time():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(0.5))
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e300", 31_536_000.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize(
    ("header", "milliseconds", "seconds"),
    [
        (None, "1500", 1.5),
        ("7", "1500", 1.5),
        ("7", "soon", 7.0),
        ("7", "nan", 7.0),
        ("7", "inf", 7.0),
        ("7", "", 7.0),
        ("soon", "250", 0.25),
        (None, "soon", None),
        (None, "-3", 0.0),
        (None, "1e300", 31_536_000.0),
    ],
)
def test_retry_after_in_milliseconds(header, milliseconds, seconds):
    assert retry_after_s(header, milliseconds) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_as_a_date(zone):
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    header = format_datetime(when, usegmt=True).replace("GMT", zone)
    assert 95 < retry_after_s(header) <= 100

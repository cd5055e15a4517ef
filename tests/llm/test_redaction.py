import json
import logging
from html import escape
from urllib.parse import quote, quote_plus

import pytest

from planner.llm import redact, secrets_in
from planner.llm.redaction import Redactor, printable

SECRET = 'pass"word/ä+&\\key'


@pytest.mark.parametrize(
    "spelled",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        quote(SECRET, safe="").lower(),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        escape(SECRET),
    ],
)
def test_every_spelling_of_a_secret_goes(spelled):
    assert redact(f"before {spelled} after {spelled}", [SECRET]) == "before [redacted] after [redacted]"


def test_escaped_slashes_go():
    assert redact(r'"aa\/bbbbbb"', ["aa/bbbbbb"]) == '"[redacted]"'


def test_the_longer_of_two_overlapping_secrets_goes_first():
    assert redact("abcdefgh-tail", ["abcdefgh", "abcdefgh-tail"]) == "[redacted]"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer [redacted]"),
        ("auth=bearer%20abcdef", "auth=bearer%20[redacted]"),
        ("provided: sk-ab12****wxyz.", "provided: [redacted]"),
        ("x_sk-proj-aaaabbbb", "x_[redacted]"),
        ("https://h/v1?key=AIzaSomething&a=1", "https://h/v1?key=[redacted]&a=1"),
        ("https://h/v1?a=1&api_key=zzz", "https://h/v1?a=1&api_key=[redacted]"),
        ("hf_aaaaabbbbbcccccddddd", "[redacted]"),
        ("a risk-adjusted task-runner, sk-learn", "a risk-adjusted task-runner, sk-learn"),
    ],
)
def test_what_looks_like_a_key_goes_though_nobody_named_it(text, clean):
    assert redact(text, []) == clean


def test_redaction_is_idempotent_and_ignores_empty_secrets():
    once = redact("Bearer aaaa ?key=bbbb sk-cccccc", ["", "aaaa"])
    assert redact(once, ["", "aaaa"]) == once


def test_secrets_in_takes_only_variables_that_hold_keys():
    environment = {
        "OPENAI_API_KEY": " key-number-1 ",
        "HF_TOKEN": "token-number-2",
        "MY_SECRET": "secret-number-3",
        "AWS_SECRET_ACCESS_KEY": "secret-number-4",
        "Some_Api_Key": "key-number-5",
        "SHORT_TOKEN": "1234567",
        "EIGHT_TOKEN": "12345678",
        "TOKENIZERS_PARALLELISM": "not-a-secret",
        "KEYBOARD": "not-a-secret-either",
        "HOME": "/home/somebody",
    }
    assert secrets_in(environment) == (
        "12345678",
        "key-number-1",
        "key-number-5",
        "secret-number-3",
        "secret-number-4",
        "token-number-2",
    )


def test_an_excerpt_is_redacted_before_it_is_cut():
    redactor = Redactor(["abcdefghijkl"])
    assert redactor.excerpt("x" * 195 + "abcdefghijkl") == "x" * 195 + "[reda"
    assert "abcdefghijkl" not in repr(redactor)


def test_an_excerpt_cannot_drive_a_terminal():
    assert printable("a\x1b[2J\n\u202eb\ud800é") == "a\\x1b[2J\\n\\u202eb\\ud800é"
    assert Redactor([]).excerpt("\r\n ok \x07.") == "ok \\x07."


def test_logs_are_redacted_while_the_block_runs(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # litellm, once imported, quietens this one
    log = logging.getLogger("httpx")
    with Redactor(["abcdefgh"]).over_logs():
        log.info("GET %s", "http://h/?key=abcdefgh")
        log.info("plain")
        try:
            raise ValueError("abcdefgh")
        except ValueError:
            log.exception("failed")
    log.info("abcdefgh")
    inside, outside = caplog.text.rsplit("INFO", 1)
    assert "abcdefgh" not in inside
    assert "ValueError: [redacted]" in inside
    assert "plain" in inside
    assert "abcdefgh" in outside

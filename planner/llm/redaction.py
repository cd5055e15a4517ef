"""Keeps keys out of everything a person or a file gets to see.

Providers echo the key they were sent: in the body of a 401, in redirects, in URLs that HTTP libraries log. So every
text that leaves this package in an exception or a log record goes through `redact`.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

__all__ = ["Redactor", "printable", "redact", "secrets_in"]

REDACTED = "[redacted]"

_KEY_NAME = re.compile(r"(?:^|_)(?:API_?KEY|ACCESS_KEY|SECRET_KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST = 8

# Keys that nobody told us about: of another account, or masked by the provider as in "sk-ab****yz".
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(Bearer)(\s+|%20|\+)[^\s\"'<>,;]+", re.IGNORECASE), rf"\1\2{REDACTED}"),
    (re.compile(r"(?<![A-Za-z0-9])sk-[\w*.…-]{6,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_|gsk_|xai-|AIza)[\w-]{20,}"), REDACTED),
    (
        re.compile(r"([?&](?:key|api[-_]?key|(?:access[-_]?)?token|auth|secret)=)[^&\s\"'<>#]+", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),
)

# The loggers that can hold a URL, a header or a body of a call. A filter acts on the very logger it is attached to,
# so the children are named one by one.
_LOGGERS = (
    "LiteLLM",
    *(
        f"{library}.{part}"
        for library in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
    "httpx",
    "httpx2",
    "openai._base_client",
    "openai._legacy_response",
    "openai._response",
)


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with each of `secrets`, in the spellings of URLs, JSON, HTML and Python too, replaced by `[redacted]`.

    Whatever looks like a key (`Bearer …`, `sk-…`, `?key=…`) is replaced as well, known or not.
    """
    spellings = {spelling for secret in secrets for spelling in _spellings(secret) if spelling}
    # Longest first: a key that starts with another one must not leave its tail.
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, REDACTED)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values, 8 characters or longer, of all variables whose name says that they hold a key, token or secret."""
    values = (value.strip() for name, value in environment.items() if _KEY_NAME.search(name))
    return tuple(sorted({value for value in values if len(value) >= _SHORTEST}))


def printable(text: str) -> str:
    """`text` with every character that a terminal could act on written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Redactor:
    """`redact` with its secrets bound, and a repr that shows none of them."""

    # Bodies beyond this are cut before the search, so that a huge error page costs nothing.
    _longest_searched = 100_000

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(secrets)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def __call__(self, text: str) -> str:
        return redact(text, self._secrets)

    def excerpt(self, text: str, length: int = 200) -> str:
        """The first `length` characters of somebody else's text, fit for an error message.

        Redacted before it is cut: half a key is a key to whoever sees it.
        """
        return printable(self(text[: self._longest_searched].strip())[:length])

    @contextlib.contextmanager
    def over_logs(self) -> Iterator[None]:
        """Redact what the HTTP libraries log while the block runs."""
        guard = _LogGuard(self)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(guard)
        try:
            yield
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(guard)


class _LogGuard(logging.Filter):
    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redactor(record.getMessage()), None
        if record.exc_info:
            # The traceback's text is made here, where it can be redacted; a handler would make it from the exception.
            record.exc_text = self._redactor(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def _spellings(secret: str) -> tuple[str, ...]:
    quoted = (quote(secret, safe=""), quote(secret), quote_plus(secret))
    return (
        secret,
        *quoted,
        *(re.sub(r"%[0-9A-F]{2}", lambda match: match.group().lower(), text) for text in quoted),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        secret.replace("/", "\\/"),
        repr(secret)[1:-1],
        html.escape(secret),
    )

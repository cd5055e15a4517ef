"""Where a request may go and which key it may carry, decided before any connection."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.errors import KeyMissing, NetworkForbidden, UsageError
from planner.llm.connections import http_library
from planner.llm.redaction import printable

__all__ = ["Endpoint", "address", "forbid_if_offline", "is_loopback", "resolve"]

_OPENAI = "https://api.openai.com/v1"
# Local servers need no key, but the SDK insists on one.
_PLACEHOLDER = "none"


@dataclass(frozen=True)
class Endpoint:
    """An address and the key for it."""

    url: str
    host: str
    loopback: bool
    key: str = field(repr=False)
    key_variable: str | None
    """Where the key came from; None for the placeholder."""


def resolve(base_url: str | None, environment: Mapping[str, str]) -> Endpoint:
    """The endpoint for `base_url`, else OPENAI_BASE_URL, else OpenAI's own.

    Raises UsageError for what is no address, NetworkForbidden, and KeyMissing.
    """
    url, host = address(base_url or environment.get("OPENAI_BASE_URL") or _OPENAI, environment)
    loopback = is_loopback(host)
    # PLANNER_API_KEY is for the address given on the command line and never goes to another one.
    for variable in ("PLANNER_API_KEY", "OPENAI_API_KEY") if base_url else ("OPENAI_API_KEY",):
        if value := environment.get(variable, "").strip():
            return Endpoint(url, host, loopback, _checked(value, variable), variable)
    if loopback:
        return Endpoint(url, host, loopback, _PLACEHOLDER, None)
    variables = "PLANNER_API_KEY or OPENAI_API_KEY" if base_url else "OPENAI_API_KEY"
    raise KeyMissing(
        f"no API key for {host}",
        hint=f"set {variables} in the environment, or point --base-url at a local server, which needs no key",
    )


def address(base_url: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The address, without a slash at its end, and its host. Raises UsageError and NetworkForbidden."""
    url, host = _parsed(base_url)
    if not is_loopback(host):
        forbid_if_offline(host, environment)
    return url, host


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its very spelling; no name is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def forbid_if_offline(host: str, environment: Mapping[str, str]) -> None:
    """Raises NetworkForbidden if PLANNER_OFFLINE is set to anything but 0."""
    if environment.get("PLANNER_OFFLINE", "") not in ("", "0"):
        raise NetworkForbidden(
            f"PLANNER_OFFLINE is set, and {printable(host)} is not on this machine",
            hint="unset PLANNER_OFFLINE, or give the address of a local server with --base-url",
        )


def _parsed(base_url: str) -> tuple[str, str]:
    # Parsed by the library that opens the connection: two parsers can see two different hosts in one address.
    library = http_library()
    problem = ""
    try:
        url = library.URL(base_url.strip())
    except library.InvalidURL:
        problem = "is not an address"
    else:
        if url.scheme not in ("http", "https") or not url.host:
            problem = "is not an http:// or https:// address"
        elif url.userinfo or url.query or url.fragment:
            problem = "holds a user name, a query or a fragment; keys come from the environment only"
    if problem:
        # The address is not repeated: it may hold a password.
        raise UsageError(f"--base-url {problem}", hint="write it like http://localhost:8000/v1")
    return str(url).rstrip("/"), url.host


def _checked(key: str, variable: str) -> str:
    # Such a key cannot stand in a header, and the error of the HTTP library would show it.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise KeyMissing(
            f"{variable} holds characters that no API key has", hint=f"set {variable} again, without quotes or spaces"
        )
    return key

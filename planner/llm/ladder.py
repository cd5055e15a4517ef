"""The ladder of shaped answers: the strictest form that an endpoint knows is found once, and remembered.

Endpoints differ in what they know (a schema they enforce, any JSON object, a tool that must be called, words alone),
and none says so before it is asked. So a shaped request goes down a rung each time the endpoint refuses the rung, and
the next run starts where this one ended. The caller checks the answer all the same, on every rung.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from planner.errors import FeatureRefused, StorageError
from planner.fsio import ensure_folder, replace_file
from planner.llm.base import Client, Reply, Request, Rung
from planner.llm.in_front import InFront
from planner.strict_json import JsonRefused, loads

__all__ = ["Ladder"]

_RUNGS: Sequence[Rung] = get_args(Rung)
_FRESH_S = 30 * 86_400
_MOST_ENTRIES = 200
_LARGEST_FILE = 2**20
_writing = threading.Lock()


class Ladder(InFront):
    """A `Client` that asks another one for shaped answers in the strictest form it knows.

    `Request.rung` is chosen here, whatever the request says. What an endpoint knew is kept in `memory`, a JSON file,
    for 30 days, by `endpoint` (an address without any secret) and model; without a file, as long as this object lives.
    A file that cannot be read or written costs a few refused requests and is no error.
    """

    def __init__(self, client: Client, *, memory: Path | None, endpoint: str) -> None:
        super().__init__(client)
        self._file = memory
        self._key = f"{endpoint} {client.name}"
        self._lock = threading.Lock()
        self._rung: Rung = _RUNGS[0]
        self._tools: bool | None = None
        entry = _read(memory).get(self._key, {})
        if time.time() - entry.get("at", 0) < _FRESH_S:
            self._rung = entry.get("rung", self._rung)
            self._tools = entry.get("tools")

    @property
    def native_tools(self) -> bool | None:
        """Whether the endpoint knows tool calls; None as long as nobody knows."""
        return self._tools

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """Ask on the best rung that is not known to be refused; `within_s` spans all rungs.

        Raises what the client raises. A `FeatureRefused` about tools passes, and is remembered; one about the last rung
        that is left passes as the one about the first.
        """
        began = time.monotonic()
        first: FeatureRefused | None = None
        at = _RUNGS.index(self._rung) if request.shape is not None else len(_RUNGS) - 1
        while True:
            asked = request.model_copy(update={"rung": _RUNGS[at]})
            left = None if within_s is None else within_s - (time.monotonic() - began)
            try:
                reply = self._client.complete(asked, within_s=left)
            except FeatureRefused as refused:
                if refused.feature == "tools":
                    self._learn(tools=False)
                    raise
                first = first or refused
                at += 1
                if request.shape is None or at == len(_RUNGS):
                    break
                continue
            if not reply.cached:
                self._learn(
                    rung=_RUNGS[at] if request.shape is not None else None, tools=True if request.tools else None
                )
            return reply
        raise first

    def _learn(self, *, rung: Rung | None = None, tools: bool | None = None) -> None:
        with self._lock:
            known = (self._rung, self._tools)
            self._rung = rung or self._rung
            self._tools = self._tools if tools is None else tools
            if self._file is not None and known != (self._rung, self._tools):
                _write(self._file, self._key, {"rung": self._rung, "tools": self._tools, "at": int(time.time())})


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    """The entries that make sense; the file may have been written by anybody."""
    if file is None:
        return {}
    try:
        value = loads(file.read_text(encoding="utf-8"), largest=_LARGEST_FILE)
    except (OSError, ValueError, JsonRefused):
        return {}
    entries = value.items() if isinstance(value, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and _makes_sense(entry)}


def _makes_sense(entry: dict[str, Any]) -> bool:
    at = entry.get("at")
    return (
        isinstance(at, int)
        and not isinstance(at, bool)
        and at <= time.time() + _FRESH_S  # a clock that was wrong must not make an entry last for ever
        and entry.get("rung") in _RUNGS
        and (entry.get("tools") is None or isinstance(entry["tools"], bool))
    )


def _write(file: Path, key: str, entry: dict[str, Any]) -> None:
    with _writing, suppress(StorageError):  # if it cannot be written, the next run asks again
        entries = {**_read(file), key: entry}
        newest = sorted(entries.items(), key=lambda item: int(item[1]["at"]), reverse=True)[:_MOST_ENTRIES]
        ensure_folder(file.parent)
        replace_file(file, (json.dumps(dict(newest), indent=1) + "\n").encode())

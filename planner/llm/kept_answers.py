"""Answers kept by the digest of their request, so that the same question is paid for once."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from planner import fsio
from planner.errors import StorageError
from planner.llm.base import Client, Reply, Request
from planner.llm.in_front import InFront

__all__ = ["KeptAnswers"]


class KeptAnswers(InFront):
    """A `Client` that looks into a folder before it asks another one; a folder that cannot be used costs time only."""

    def __init__(self, client: Client, folder: Path, *, endpoint: str) -> None:
        super().__init__(client)
        self._folder = folder
        self._asked = f"{endpoint}\n{client.name}\n"
        self._given: list[Path] = []

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """The kept answer, else a new one, which is kept."""
        path = self._path(request)
        self._given.append(path)
        with suppress(OSError, ValueError):  # among them ValidationError: another version wrote it
            return Reply.model_validate_json(path.read_bytes()).model_copy(update={"cached": True})
        reply = self._client.complete(request, within_s=within_s)
        with suppress(StorageError):
            fsio.ensure_folder(path.parent)
            fsio.replace_file(path, reply.model_dump_json().encode() + b"\n", mode=0o600)
        return reply

    def begin(self) -> None:
        """A new conversation begins: `forget` is about what is asked from here on."""
        self._given.clear()

    def forget(self) -> None:
        """Keep nothing of this conversation: its answers led nowhere, and the next try should not be given them."""
        for path in self._given:
            with suppress(StorageError):
                fsio.remove_file(path)
        self._given.clear()

    def _path(self, request: Request) -> Path:
        digest = hashlib.sha256((self._asked + request.model_dump_json()).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"

"""What was sent to a model and what came back, in full; kept beside the plan, and enough to play it again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from planner import strict_json
from planner.analysts.settings import Asking, ToolUse
from planner.errors import AnalystFailed, FeatureRefused, TranscriptUnusable
from planner.inputs import read_text
from planner.llm import Client, Reply, Request, redact
from planner.plan import Policy, Problem
from planner.records import Record

__all__ = [
    "STEPS_LEFT",
    "CalledTool",
    "Exchange",
    "Failed",
    "Purpose",
    "Recorder",
    "Transcript",
    "policy_sha256",
    "read_transcript",
    "request_digest",
]

STEPS_LEFT = "\n[steps left: "
"""Begins what stands below the last result of a step, which is no part of that result."""
Purpose = Literal["investigate", "answer", "repair"]


class CalledTool(Record):
    """One tool that the model called, and what it was told."""

    name: str
    """Which."""
    arguments: str
    """As the model wrote them."""
    result: str
    """What it was told."""
    ok: bool
    """Whether that was a result, and not what was wrong with the call."""


class Failed(Record):
    """A request that brought no usable answer."""

    code: str
    """The error's code."""
    message: str
    """What happened."""
    hint: str
    """What to do about it."""
    feature: str = ""
    """What the endpoint did not know, for feature-refused."""


class Exchange(Record):
    """One request and what became of it."""

    purpose: Purpose
    """investigate: before it answers, with tools. answer: the plan. repair: the plan again, mended."""
    digest: str
    """SHA-256 of the request; the same question has the same one."""
    request: Request
    """What was sent."""
    reply: Reply | None = None
    """What came back; null where nothing usable did."""
    failed: Failed | None = None
    """Why nothing did."""
    called: tuple[CalledTool, ...] = ()
    """The tools that the reply called."""
    problems: tuple[Problem, ...] = ()
    """What was wrong with the plan in it."""


class Transcript(Record):
    """A whole conversation with a model."""

    schema_: Literal["planner/transcript@2"] = Field(default="planner/transcript@2", alias="schema")
    """Kind and version of this file."""
    model: str
    """The model that was asked for."""
    prompt_sha256: str
    """Digest of the prompt templates."""
    goal: str
    """What was wanted."""
    checkpoint: str
    """The checkpoint it was about, by name."""
    fingerprint: str
    """The same, by its fingerprint."""
    policy_sha256: str
    """Digest of the policy."""
    evidence: str | None = None
    """The id of the evidence that was shown; null for none."""
    asking: Asking
    """How the model was asked, limits included."""
    tool_use: ToolUse
    """How tools could be called at the start."""
    plan: str
    """The id of the plan."""
    created: str
    """When the conversation began, UTC."""
    record: str = ""
    """The track record of this analyst that it was shown."""
    exchanges: tuple[Exchange, ...] = ()
    """In order."""
    looked_until: str = ""
    """The limit that ended the investigation; empty where the model ended it."""
    outcome: str = ""
    """How it ended: `plan`, `interrupted`, or the code of the error."""

    def encoded(self, secrets: Sequence[str]) -> bytes:
        """The transcript as a file, without any of `secrets`."""
        return redact(self.model_dump_json(indent=2), tuple(secrets)).encode() + b"\n"


class Recorder:
    """Asks through a client and writes everything down; `transcript` is complete also after a failure."""

    def __init__(self, client: Client, transcript: Transcript) -> None:
        self._client = client
        self.transcript = transcript

    def ask(self, request: Request, purpose: Purpose, *, within_s: float) -> Reply:
        """The reply. Raises what the client raises."""
        self._add(Exchange(purpose=purpose, digest=request_digest(request), request=request))
        try:
            reply = self._client.complete(request, within_s=within_s)
        except AnalystFailed as error:
            feature = error.feature if isinstance(error, FeatureRefused) else ""
            self.amend(failed=Failed(code=error.code, message=error.message, hint=error.hint, feature=feature))
            raise
        self.amend(reply=reply)
        return reply

    def amend(self, **update: object) -> None:
        """Note more about the last exchange."""
        *earlier, last = self.transcript.exchanges
        changed = (*earlier, last.model_copy(update=update))
        self.transcript = self.transcript.model_copy(update={"exchanges": changed})

    def stop_looking(self, why: str) -> None:
        """Note the limit that ended the investigation."""
        self.transcript = self.transcript.model_copy(update={"looked_until": why})

    def end(self, outcome: str) -> None:
        """Note how it ended."""
        self.transcript = self.transcript.model_copy(update={"outcome": outcome})

    def _add(self, exchange: Exchange) -> None:
        exchanges = (*self.transcript.exchanges, exchange)
        self.transcript = self.transcript.model_copy(update={"exchanges": exchanges})


def policy_sha256(policy: Policy) -> str:
    """SHA-256 of a policy; one that names a default differs from one that leaves it out, for a model is told so."""
    named = sorted(policy.model_fields_set)
    return hashlib.sha256(f"{named}\n{policy.model_dump_json()}".encode()).hexdigest()


def request_digest(request: Request) -> str:
    """SHA-256 of everything in a request."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def read_transcript(path: Path) -> Transcript:
    """The transcript in a file. Raises `FileUnreadable` or `TranscriptUnusable`."""
    text = read_text(path)
    try:
        strict_json.loads(text, largest=_LARGEST)
        return Transcript.model_validate_json(text)
    except strict_json.JsonRefused as error:
        raise TranscriptUnusable(f"{path} is not sound JSON: {error}", hint=_WRITES) from None
    except ValidationError as error:
        older = '"planner/transcript@1"' in text[:200]
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        why = "it was written by an older planner" if older else f"{where}: {first['msg']}"
        raise TranscriptUnusable(f"{path} is no transcript that this planner reads: {why}", hint=_WRITES) from None


_WRITES = "`planner propose --llm` writes transcripts"
_LARGEST = 2**28

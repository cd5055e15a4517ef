"""Every error a user can cause: one tree, drawn here.

    PlannerError                     1   a bug in the planner, when raised as itself
    ├── UsageError                   2   wrong usage
    │   ├── OutputExists                 the output is there already and is not empty
    │   ├── ExtraMissing                 an optional extra is not installed
    │   ├── AnswerNeeded                 a question would be asked, but nobody is there to answer
    │   ├── FileUnreadable               a file named by the user cannot be read
    │   ├── TextInvalid                  a file of documents that holds none, or something else
    │   ├── SuiteInvalid                 an evaluation suite that makes no sense
    │   ├── EvidenceUnusable             a file of evidence that is none, or not that of this checkpoint
    │   ├── TranscriptUnusable           a transcript that is none, or of other questions
    │   ├── PolicyInvalid                a policy file that makes no sense
    │   ├── PipelineInvalid              a pipeline file that makes no sense
    │   ├── SigningKeyUnusable           a key to sign or verify with that cannot be used
    │   ├── PatchMissing                 the ledger holds no such patch
    │   └── NothingToRevert              the ledger holds no patch to take back
    ├── PlanRefused                  3   the plan is refused; carries every problem found
    │   ├── PlanInvalid                  not a plan, or not one this version can read
    │   │   └── PlanTooNew               written by a newer planner
    │   ├── PatchUnusable                a portable patch that is none, or is damaged
    │   ├── PlanNotApproved              a modification that no reviewer approved, or not as it is now
    │   ├── SignatureRefused             a signature that is missing, wrong, or of somebody who may not sign
    │   ├── ArrayUnusable                a file of arrays that the plan names cannot be used
    │   ├── AdapterUnusable              a LoRA adapter that the plan names cannot be used faithfully
    │   └── VoidModification             a modification that would change no stored bit
    ├── StalePlan                    4   the checkpoint is not the one the plan was made for
    ├── GateRefused                  5   a gate refused the candidate
    ├── AnalystFailed                6   no plan could be had
    │   ├── KeyMissing                   no API key in the environment
    │   ├── EndpointUnreachable          no connection, or no answer in time
    │   ├── EndpointRefused              the endpoint answered with an error
    │   │   └── FeatureRefused           it does not know the tools or the answer format asked for
    │   ├── AnswerUnusable               an answer without usable text (empty, cut, refused)
    │   ├── NoValidPlan                  every answer had problems
    │   ├── LimitReached                 tokens, cost, time or steps were used up first
    │   └── NetworkForbidden             PLANNER_OFFLINE is set
    ├── StorageError                 7   the disk said no
    │   ├── NoSpace                      it is full
    │   ├── ReadOnly                     it may not be written
    │   ├── UnsafeInPlace                links or a hub cache: editing here would change other copies
    │   ├── FileInUse                    another process has a file open that would change under it
    │   ├── ResultDiffers                the result is not that of the receipt it was to be
    │   ├── RecoveryBlocked              an interrupted change in place cannot be finished or taken back now
    │   └── LedgerDamaged                the weights or the ledger are not what the ledger says
    ├── Locked                       8   another process is changing this checkpoint
    ├── CheckpointError              9   malformed or unsupported
    │   ├── NotACheckpoint               no safetensors file here
    │   ├── PickleOnly                   only pickle files, which are never opened
    │   ├── HeaderMalformed              a safetensors header that breaks the format's rules
    │   ├── ShardTruncated               a shard shorter or longer than its header says
    │   ├── ShardMissing                 index and shards disagree
    │   ├── ShardsAmbiguous              stale shards: two loaders would read different weights
    │   ├── ConfigMalformed              config.json is not a JSON object
    │   └── UnknownDtype                 a dtype this version does not read
    └── Interrupted                130   Ctrl-C

The number is the exit status; a branch shares that of its root. This module imports nothing of the planner.
"""

from __future__ import annotations

import re
from typing import ClassVar

# fmt: off
__all__ = [
    "AdapterUnusable", "AnalystFailed", "AnswerNeeded", "AnswerUnusable", "ArrayUnusable", "CheckpointError",
    "ConfigMalformed", "EndpointRefused", "EndpointUnreachable", "EvidenceUnusable", "ExtraMissing", "FeatureRefused",
    "FileInUse", "FileUnreadable", "GateRefused", "HeaderMalformed", "Interrupted", "KeyMissing", "LedgerDamaged",
    "LimitReached", "Locked", "NetworkForbidden", "NoSpace", "NoValidPlan", "NotACheckpoint", "NothingToRevert",
    "OutputExists", "PatchMissing", "PatchUnusable", "PickleOnly", "PipelineInvalid", "PlanInvalid", "PlanNotApproved",
    "PlanRefused", "PlanTooNew", "PlannerError", "PolicyInvalid", "ReadOnly", "RecoveryBlocked", "ResultDiffers",
    "ShardMissing", "ShardTruncated", "ShardsAmbiguous", "SignatureRefused", "SigningKeyUnusable", "StalePlan",
    "StorageError", "SuiteInvalid", "TextInvalid", "TranscriptUnusable", "UnknownDtype", "UnsafeInPlace", "UsageError",
    "VoidModification",
]
# fmt: on


class PlannerError(Exception):
    """Root of the tree: what happened (`message`) and what to do next (`hint`)."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __init_subclass__(cls) -> None:
        """The code is the name of the class in lower case, with hyphens, unless it has one of its own."""
        super().__init_subclass__()
        cls.code = cls.__dict__.get("code", re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower())


class UsageError(PlannerError):
    """The command, an option or a small input file is wrong."""

    code = "usage"
    exit_status = 2


class OutputExists(UsageError):
    """The output exists and is not empty; stale shards beside new ones make two loaders read different weights."""


class ExtraMissing(UsageError):
    """The command needs an optional extra that is not installed."""


class AnswerNeeded(UsageError):
    """A question would be asked, but there is no terminal to ask it on."""


class FileUnreadable(UsageError):
    """A file that the user named is missing, unreadable or not text."""


class TextInvalid(UsageError):
    """A file of documents that is not one."""


class SuiteInvalid(UsageError):
    """The evaluation suite makes no sense."""


class EvidenceUnusable(UsageError):
    """A file of evidence that cannot be read, lacks its arrays, or was measured on another checkpoint."""


class TranscriptUnusable(UsageError):
    """A file that is no transcript of a conversation with a model, or of a conversation about something else."""


class PolicyInvalid(UsageError):
    """The policy file makes no sense."""


class PipelineInvalid(UsageError):
    """The pipeline file makes no sense."""


class SigningKeyUnusable(UsageError):
    """A key to sign or to verify with is missing, too short, readable by everybody, or refused by ssh-keygen."""


class PatchMissing(UsageError):
    """The ledger holds no such patch, or none is in force."""


class NothingToRevert(UsageError):
    """The ledger holds no patch to take back, or not the one asked for."""


class PlanRefused(PlannerError):
    """The plan is refused. `problems` holds every reason, one line each."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class PlanInvalid(PlanRefused):
    """The text is not a plan."""


class PlanTooNew(PlanInvalid):
    """The plan was written by a planner with a newer plan format."""


class PatchUnusable(PlanRefused):
    """A file that is no portable patch, or a damaged one."""


class PlanNotApproved(PlanRefused):
    """Nothing in the plan is approved, something is undecided, or what was approved is not what is there now."""


class SignatureRefused(PlanRefused):
    """A signature is missing where one is required, is not of this text, or is of somebody who may not sign."""


class ArrayUnusable(PlanRefused):
    """An array that the plan names is missing, malformed, changed, not finite, or outside the plan's folder."""


class AdapterUnusable(PlanRefused):
    """A LoRA adapter is missing or malformed, does not fit the model, or asks for what a sum of weights cannot do."""


class VoidModification(PlanRefused):
    """A modification would change no stored bit: the silent no-op."""


class StalePlan(PlannerError):
    """The checkpoint's fingerprint is not the one the plan was made for."""

    exit_status = 4


class GateRefused(PlannerError):
    """A gate of the suite refused the candidate."""

    exit_status = 5


class AnalystFailed(PlannerError):
    """The analyst could not give a plan."""

    exit_status = 6


class KeyMissing(AnalystFailed):
    """No API key in the environment."""


class EndpointUnreachable(AnalystFailed):
    """The endpoint could not be reached, or did not answer within the time limit."""


class EndpointRefused(AnalystFailed):
    """The endpoint answered with an error, or with something that is no chat completion."""


class FeatureRefused(EndpointRefused):
    """The endpoint does not know what the request relies on. `feature` is tools, json_schema, json_object or tool."""

    def __init__(self, message: str, *, hint: str, feature: str = "") -> None:
        super().__init__(message, hint=hint)
        self.feature = feature


class AnswerUnusable(AnalystFailed):
    """The endpoint answered, but without usable text: empty, cut short, filtered or refused."""


class NoValidPlan(AnalystFailed):
    """Every answer had problems. `problems` are those of the last one."""

    def __init__(self, message: str, *, hint: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class LimitReached(AnalystFailed):
    """The tokens, the cost, the time or the steps that the user allowed were used up before there was a plan."""


class NetworkForbidden(AnalystFailed):
    """PLANNER_OFFLINE is set and the endpoint is not on this machine."""


class StorageError(PlannerError):
    """The operating system refused to read or write."""

    code = "storage"
    exit_status = 7


class NoSpace(StorageError):
    """The file system is full, or too small for what is about to be written."""


class ReadOnly(StorageError):
    """The place may not be written."""


class UnsafeInPlace(StorageError):
    """An in-place edit would reach other copies (links, a hub cache) or cannot be made atomic here."""


class FileInUse(StorageError):
    """Another process has a file open or mapped whose bytes would change under it."""


class ResultDiffers(StorageError):
    """The result of a plan has not the digests that a receipt of it from elsewhere has."""


class RecoveryBlocked(StorageError):
    """A change in place was interrupted, and can neither be finished nor taken back as things are; nothing is lost."""


class LedgerDamaged(StorageError):
    """Files on disk are not what the ledger recorded."""


class Locked(PlannerError):
    """Another process holds the lock of this checkpoint."""

    exit_status = 8


class CheckpointError(PlannerError):
    """The checkpoint is malformed or unsupported."""

    code = "checkpoint"
    exit_status = 9


class NotACheckpoint(CheckpointError):
    """There is no safetensors checkpoint at that place."""


class PickleOnly(CheckpointError):
    """Only pickle files are there; opening one can run any code, so none is ever opened."""


class HeaderMalformed(CheckpointError):
    """A safetensors header breaks the rules of the format."""


class ShardTruncated(CheckpointError):
    """A shard's length is not what its header says."""


class ShardMissing(CheckpointError):
    """The index and the shards disagree."""


class ShardsAmbiguous(CheckpointError):
    """Shards that the index does not name, or a tensor in two shards: two loaders would read different weights."""


class ConfigMalformed(CheckpointError):
    """config.json is not a JSON object."""


class UnknownDtype(CheckpointError):
    """A tensor has a dtype that this version does not read."""


class Interrupted(PlannerError):
    """Ctrl-C: the command stopped and nothing is half-done."""

    exit_status = 130

"""Which analyst the user wants, and the way from that choice to a plan file with its transcript beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from planner import fsio
from planner.analysts.base import Brief
from planner.analysts.llm import LLMAnalyst
from planner.analysts.measured import MeasuredAnalyst, Study
from planner.analysts.rules import RulesAnalyst
from planner.analysts.tuning import Tell
from planner.errors import NoValidPlan
from planner.llm import client_for, secrets_in
from planner.plan import Plan, write_plan
from planner.records import Record

__all__ = ["AnalystChoice", "factors_path", "propose_to", "transcript_path"]


class AnalystChoice(Record):
    """Who writes the plan, and how a language model is asked."""

    kind: Literal["rules", "llm"] = "rules"
    """rules: the built-in ones, from the profile alone or from evidence. llm: a language model."""
    llm: str | None = None
    """The language model: NAME, or PROVIDER/NAME."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint; its key comes from the environment."""
    repairs: int = Field(default=2, ge=0, le=10)
    """How often problems go back to the model."""
    max_output_tokens: int = Field(default=8192, ge=256)
    """Longest answer of the model, in tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; null sends none."""
    timeout_s: float = Field(default=300, ge=1)
    """Seconds to wait for one answer, retries included."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "llm" and not self.llm:
            raise ValueError("no language model is named: say llm = NAME or PROVIDER/NAME")
        if self.kind == "rules" and (self.llm or self.base_url):
            raise ValueError("a language model is named, but the analyst is `rules`")
        return self


def transcript_path(plan: Path) -> Path:
    """Where the next transcript of a plan goes: plan.transcript.json, numbered if an earlier try left one."""
    names = (".transcript.json", *(f".transcript-{number}.json" for number in range(2, 1000)))
    free = (path for path in map(plan.with_suffix, names) if not path.exists())
    return next(free, plan.with_suffix(names[-1]))


def factors_path(plan: Path) -> Path:
    """Where the factors of a plan go that has vectors of them: plan.factors.safetensors."""
    return plan.with_name(f"{plan.stem}.factors.safetensors")


def propose_to(
    out: Path,
    brief: Brief,
    choice: AnalystChoice,
    *,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    study: Study | None = None,
    progress: Tell | None = None,
) -> Plan:
    """Ask the chosen analyst and write its plan to `out`; the transcript is written whatever becomes of it.

    With a `study` the rules work from evidence, and the factors of the plan are written beside it. Raises an
    `AnalystFailed`, what `client_for` raises before anything is sent, or what `MeasuredAnalyst` raises.
    """
    if study is not None:
        return _from_evidence(out, brief, study, progress=progress)
    if choice.kind == "rules":
        plan = RulesAnalyst().propose(brief)
    else:
        plan = _from_model(out, brief, choice, environment=environment, tell=tell)
    fsio.replace_file(out, write_plan(plan))
    return plan


def _from_evidence(out: Path, brief: Brief, study: Study, *, progress: Tell | None) -> Plan:
    """The factors first, because the plan names their digest; without the plan they do not stay."""
    factors = factors_path(out)
    proposal = MeasuredAnalyst(study, tell=progress).propose(brief, arrays_file=factors.name)
    if proposal.arrays is not None:
        fsio.replace_file(factors, proposal.arrays)
    try:
        if problems := brief.check(proposal.plan).problems:
            raise NoValidPlan(
                f"the plan that the rules made from the evidence is refused: {problems[0].message}",
                problems=tuple(map(str, problems)),
                hint="allow more in the policy, or protect the tensors that are named",
            )
        fsio.replace_file(out, write_plan(proposal.plan))
    except BaseException:
        fsio.remove_file(factors)
        raise
    return proposal.plan


def _from_model(
    out: Path, brief: Brief, choice: AnalystChoice, *, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Plan:
    assert choice.llm is not None, "AnalystChoice saw to it"
    secrets = secrets_in(environment)
    analyst = LLMAnalyst(
        client_for(choice.llm, base_url=choice.base_url, timeout_s=choice.timeout_s, environment=environment),
        most_repairs=choice.repairs,
        max_output_tokens=choice.max_output_tokens,
        temperature=choice.temperature,
        secrets=secrets,
        tell=tell,
    )
    try:
        return analyst.propose(brief)
    finally:
        if analyst.transcript.exchanges:
            kept = transcript_path(out)
            fsio.replace_file(kept, analyst.transcript.encoded(secrets))
            tell(f"wrote {kept}: everything that was sent and answered")

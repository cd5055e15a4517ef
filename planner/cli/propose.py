"""`planner propose`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.check import PolicyOption
from planner.cli.given import Json, ModelArgument, at_most
from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.analysts import AnalystChoice
    from planner.cli.console import Screen
    from planner.plan import Plan


_SHOWN = 6


def command(
    model: ModelArgument,
    goal: Annotated[str, typer.Option(callback=at_most(2048), help="What you want from the model, in a sentence.")],
    analyst: Annotated[
        str, typer.Option(help="Who writes the plan: llm or rules. Default: llm if --llm is given.")
    ] = "",
    llm: Annotated[str | None, typer.Option(metavar="PROVIDER/NAME", help="The language model to ask.")] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")] = None,
    policy: PolicyOption = None,
    out: Annotated[Path, typer.Option(metavar="PLAN", help="Where to write the plan.")] = Path("plan.json"),
    repairs: Annotated[int, typer.Option(min=0, max=10, help="How often problems go back to the model.")] = 2,
    max_output_tokens: Annotated[int, typer.Option(min=256, help="Longest answer of the model.")] = 8192,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; by default none is sent.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer, retries included.")] = 300,
    evidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `planner probe` measured: the rules then work from it.")
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(metavar="SUITE", help="With --evidence: choose the strength by measuring on this suite."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="With --tune: evaluations of the suite at most.")] = 30,
    most: Annotated[int, typer.Option(min=1, help="With --evidence: modifications at most.")] = 44,
    drift_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --evidence: how much a nat of drift counts against a nat of loss. "
            "Default: 0; 3 where the suite has a gate not_worse or max_drift.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plan: reasoned, confidence-scored modifications, checked against the checkpoint.

    The key of an endpoint comes from the environment: OPENAI_API_KEY, or PLANNER_API_KEY with --base-url.
    """
    from planner.analysts import Brief, Study, factors_path, propose_to
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, free_name, policy_at, profiled
    from planner.effects import check, known_evidence
    from planner.evaluation import load_suite
    from planner.profile import histograms_of

    screen = Screen(as_json=as_json)
    _require_together(evidence=evidence, tune=tune, drift_weight=drift_weight, llm=llm or base_url or analyst == "llm")
    choice = _choice(
        kind=analyst or ("llm" if llm or base_url else "rules"),
        llm=llm,
        base_url=base_url,
        repairs=repairs,
        max_output_tokens=max_output_tokens,
        temperature=temperature,
        timeout_s=timeout,
    )
    limits = policy_at(policy)
    free_name(out)
    known = known_evidence(evidence) if evidence else None
    suite = load_suite(tune) if tune else None
    if known:
        free_name(factors_path(out))
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    kept = histograms_of(profile)
    brief = Brief(
        goal=goal,
        profile=profile,
        policy=limits,
        check=lambda plan: check(plan, checkpoint, profile, limits, folder=out.parent, histograms=kept, evidence=known),
    )
    study = None
    if evidence and known:
        study = Study(
            checkpoint=checkpoint,
            path=evidence,
            evidence=known[0],
            measured=known[1],
            suite=suite,
            budget=budget,
            most=most,
            drift_weight=drift_weight,
        )
    with screen.progress("proposing", unit="tokens") if study else nullcontext() as bar:
        plan = propose_to(
            out,
            brief,
            choice,
            environment=os.environ,
            tell=screen.say,
            study=study,
            progress=bar.step if bar else None,
        )
    screen.emit(plan)
    _print(plan, choice, screen)
    beside = f" and {factors_path(out).name}" if study and plan.modifications else ""
    screen.say(f"wrote {out}{beside}")
    if plan.modifications:
        screen.say(f"next: planner check {out} --model {model}")


def _require_together(*, evidence: Path | None, tune: Path | None, drift_weight: float | None, llm: object) -> None:
    if evidence and llm:
        raise UsageError(
            "--evidence is for the rules, not for a language model", hint="--analyst rules, and no --llm or --base-url"
        )
    if not evidence and (tune or drift_weight is not None):
        option = "--tune" if tune else "--drift-weight"
        raise UsageError(f"{option} needs --evidence", hint="measure it with planner probe")


def _choice(**given: object) -> AnalystChoice:
    from pydantic import ValidationError

    from planner.analysts import AnalystChoice
    from planner.plan import field_path

    try:
        return AnalystChoice.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = field_path(found["loc"]) if found["loc"] else ""
        option = {"kind": "--analyst", "timeout_s": "--timeout"}.get(field, "--" + field.replace("_", "-"))
        raise UsageError(
            (f"{option}: " if field else "") + found["msg"].removeprefix("Value error, "),
            hint="--analyst rules, or --analyst llm --llm PROVIDER/NAME",
        ) from None


def _print(plan: Plan, choice: AnalystChoice, screen: Screen) -> None:
    from planner.cli.check_table import describe

    count = len(plan.modifications)
    screen.show(f"{count or 'no'} modification{'' if count == 1 else 's'} by {choice.kind}: {plan.note}")
    for modification in plan.modifications[:_SHOWN]:
        target = modification.target
        where = " ".join([*(target.tensors or ()), *(target.roles or ())])
        where += f" layers {target.layers}" if target.layers else ""
        screen.show()
        screen.show(f"{modification.id}  {describe(modification.operation.model_dump())}")
        screen.show(f"     on {where}")
        screen.prose(modification.reasoning, indent=5)
        screen.prose(f"confidence {modification.confidence:g}; expects: {modification.expected_impact}", indent=5)
    if count > _SHOWN:
        screen.show()
        screen.show(f"and {count - _SHOWN} more in the plan: {plan.note.partition(';')[0]}")

"""`planner propose`."""

from __future__ import annotations

import os
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
    as_json: Json = False,
) -> None:
    """Write a plan: reasoned, confidence-scored modifications, checked against the checkpoint.

    The key of an endpoint comes from the environment: OPENAI_API_KEY, or PLANNER_API_KEY with --base-url.
    """
    from planner.analysts import Brief, propose_to
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, free_name, policy_at, profiled
    from planner.effects import check
    from planner.profile import histograms_of

    screen = Screen(as_json=as_json)
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
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    kept = histograms_of(profile)
    brief = Brief(
        goal=goal,
        profile=profile,
        policy=limits,
        check=lambda plan: check(plan, checkpoint, profile, limits, folder=out.parent, histograms=kept),
    )
    plan = propose_to(out, brief, choice, environment=os.environ, tell=screen.say)
    screen.emit(plan)
    _print(plan, choice, screen)
    screen.say(f"wrote {out}")
    if plan.modifications:
        screen.say(f"next: planner check {out} --model {model}")


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
    for modification in plan.modifications:
        target = modification.target
        where = " ".join([*(target.tensors or ()), *(target.roles or ())])
        where += f" layers {target.layers}" if target.layers else ""
        screen.show()
        screen.show(f"{modification.id}  {describe(modification.operation.model_dump())}")
        screen.show(f"     on {where}")
        screen.prose(modification.reasoning, indent=5)
        screen.prose(f"confidence {modification.confidence:g}; expects: {modification.expected_impact}", indent=5)

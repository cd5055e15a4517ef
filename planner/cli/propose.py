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
    from collections.abc import Iterator

    from planner.analysts import AnalystChoice, Brief
    from planner.cli.console import Screen
    from planner.plan import Plan


_SHOWN = 6


def command(
    model: ModelArgument,
    goal: Annotated[
        str, typer.Option(callback=at_most(2048), help="What you want from the model, in a sentence.")
    ] = "",
    analyst: Annotated[
        str, typer.Option(help="Who writes the plan: llm, rules or random. Default: llm if --llm is given.")
    ] = "",
    llm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER/NAME", help="The language model to ask; repeat it for several, whose plans are merged."
        ),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")] = None,
    policy: PolicyOption = None,
    out: Annotated[Path, typer.Option(metavar="PLAN", help="Where to write the plan.")] = Path("plan.json"),
    samples: Annotated[int, typer.Option(min=1, max=32, help="Ask each model so often, and merge the plans.")] = 1,
    tools: Annotated[
        bool, typer.Option("--tools/--no-tools", help="Let the model look at what it wants before it answers.")
    ] = True,
    repairs: Annotated[int, typer.Option(min=0, max=10, help="How often problems go back to the model.")] = 2,
    partial: Annotated[
        bool, typer.Option("--partial", help="Keep the valid modifications where others stay invalid.")
    ] = False,
    context_tokens: Annotated[
        int | None,
        typer.Option(min=2000, help="Longest first question. Default: 8,000; 24,000 for more than 1,000 tensors."),
    ] = None,
    max_output_tokens: Annotated[int, typer.Option(min=256, help="Longest answer of the model.")] = 8192,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; by default none is sent.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Sampling seed, where the provider heeds one; seed of --analyst random.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer, retries included.")] = 300,
    max_steps: Annotated[int, typer.Option(min=0, max=100, help="Times the model may look at something.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1000, help="Tokens of one conversation, sent and received.")] = 400_000,
    max_cost: Annotated[float | None, typer.Option(min=0.000001, help="US dollars of one conversation.")] = None,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for one conversation, from question to plan.")] = 1800,
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="US dollars per million tokens, if no price list knows.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Ask anew, even if the same question was answered before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first question and what it takes; send nothing.")
    ] = False,
    replay: Annotated[
        list[Path] | None,
        typer.Option(metavar="TRANSCRIPT", help="Play a conversation again, without network; repeat for several."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="With --analyst random: the plan to be as strong as.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `planner probe` measured; the analyst works from it.")
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(metavar="SUITE", help="Rules with --evidence: choose the strength by measuring on this suite."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="With --tune: evaluations of the suite at most.")] = 30,
    most: Annotated[int, typer.Option(min=1, help="Rules with --evidence: modifications at most.")] = 44,
    drift_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Rules with --evidence: how much a nat of drift counts against a nat of loss. "
            "Default: 0; 3 where the suite has a gate not_worse or max_drift.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plan: reasoned, confidence-scored modifications, checked against the checkpoint.

    The key of an endpoint comes from the environment: OPENAI_API_KEY, or PLANNER_API_KEY with --base-url.
    """
    from planner import fsio
    from planner.analysts import Brief, Study, factors_path, propose_to, replayed_plan
    from planner.architecture import map_of
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, free_name, plan_at, policy_at, profiled
    from planner.effects import check, known_evidence
    from planner.evaluation import load_suite
    from planner.plan import write_plan
    from planner.profile import histograms_of

    screen = Screen(as_json=as_json)
    goal = goal or (plan_at(like).goal if like else "")
    choice = _choice(
        kind=analyst or ("llm" if llm or base_url or replay else "random" if like else "rules"),
        llm=llm or (["replayed"] if replay else None),
        base_url=base_url,
        samples=samples,
        tools=tools,
        repairs=repairs,
        partial=partial,
        context_tokens=context_tokens,
        max_output_tokens=max_output_tokens,
        temperature=temperature,
        seed=seed,
        timeout_s=timeout,
        limits={"steps": max_steps, "tokens": max_tokens, "cost_usd": max_cost, "wall_s": deadline},
        price=_price(price),
        cache=not no_cache,
        like=str(like) if like else None,
    )
    _require_together(
        choice, evidence=evidence, tune=tune, drift_weight=drift_weight, goal=goal, replay=replay, llm=llm
    )
    limits = policy_at(policy)
    if not dry_run:
        free_name(out)
    known = known_evidence(evidence) if evidence else None
    suite = load_suite(tune) if tune else None
    rules_measure = bool(known) and choice.kind == "rules"
    if rules_measure:
        free_name(factors_path(out))
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    kept = histograms_of(profile)

    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    mapped = map_of(checkpoint.config, shapes)

    def brief(wanted: str) -> Brief:
        return Brief(
            goal=wanted,
            profile=profile,
            policy=limits,
            check=lambda plan: check(
                plan, checkpoint, profile, limits, folder=out.parent, histograms=kept, evidence=known, model=mapped
            ),
            checkpoint=checkpoint,
            model=mapped,
            histograms=kept,
            evidence=known,
            evidence_file=evidence.name if evidence else None,
        )

    study = None
    if evidence and known and rules_measure:
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
    if dry_run:
        _show_question(brief(goal), choice, screen)
        return
    with screen.progress("proposing", unit="tokens") if study else nullcontext() as bar:
        if replay:
            plan = replayed_plan(replay, brief, partial=partial, tell=screen.say)
        else:
            plan = propose_to(
                out,
                brief(goal),
                choice,
                environment=os.environ,
                tell=screen.say,
                study=study,
                progress=bar.step if bar else None,
            )
    if policy:  # the plan is reviewed and applied under the limits that it was written for
        plan = plan.model_copy(update={"policy": limits})
    if replay or policy:
        fsio.replace_file(out, write_plan(plan))
    screen.emit(plan)
    _print(plan, choice, screen)
    beside = f" and {factors_path(out).name}" if study and plan.modifications else ""
    screen.say(f"wrote {out}{beside}")
    if plan.modifications:
        screen.say(f"next: planner check {out} --model {model}" + (f" --policy {policy}" if policy else ""))


def _require_together(
    choice: AnalystChoice,
    *,
    evidence: Path | None,
    tune: Path | None,
    drift_weight: float | None,
    goal: str,
    replay: list[Path] | None,
    llm: list[str] | None,
) -> None:
    if replay and (goal or llm or choice.base_url):
        raise UsageError(
            "--replay asks nobody: goal, model and settings are those of the transcript",
            hint="leave out --goal, --llm and --base-url",
        )
    if not goal and not replay:
        raise UsageError("--goal is missing: what do you want from the model?", hint='in a sentence: --goal "..."')
    for option, given in (("--tune", tune), ("--drift-weight", drift_weight)):
        if given is not None and choice.kind != "rules":
            raise UsageError(f"{option} is for the rules", hint="--analyst rules, or leave it out")
        if given is not None and not evidence:
            raise UsageError(f"{option} needs --evidence", hint="measure it with planner probe")


def _price(given: str | None) -> dict[str, float] | None:
    if given is None:
        return None
    try:
        sent, received = (float(part) for part in given.split(","))
    except ValueError:
        raise UsageError(
            f"--price {given} is not two numbers", hint="US dollars per million tokens, sent and received: --price 2,8"
        ) from None
    return {"input_usd": sent, "output_usd": received}


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
            hint="--analyst rules, --analyst llm --llm PROVIDER/NAME, or --analyst random --like PLAN",
        ) from None


def _show_question(brief: Brief, choice: AnalystChoice, screen: Screen) -> None:
    """What would be sent first."""
    from planner.analysts import first_question, track_folder, track_record
    from planner.llm import redact, secrets_in

    if choice.kind != "llm":
        raise UsageError("--dry-run shows what a language model would be asked", hint="name one with --llm")
    secrets = secrets_in(os.environ)
    record = track_record(track_folder(), "llm", choice.llm[0])
    asked = first_question(
        brief,
        choice.asking(0),
        record=record.sentence() if record.plans else "",
        clean=lambda text: redact(text, secrets),
    )
    screen.emit(asked)
    for message in asked.messages:
        screen.show(f"----- {message.role}")
        for line in message.content.splitlines():
            screen.show(line)
    for tool in asked.tools:
        screen.show(f"----- tool {tool.name}: {tool.description}")
    cost = f", some {choice.price.of(asked.tokens):.4f} US dollars" if choice.price else ""
    screen.say(f"{asked.tokens:,} tokens with the tools, by the local estimate{cost}; nothing was sent")


def _print(plan: Plan, choice: AnalystChoice, screen: Screen) -> None:
    from planner.plan.wording import described

    count = len(plan.modifications)
    screen.show(f"{count or 'no'} modification{'' if count == 1 else 's'} by {choice.kind}: {plan.note}")
    for sentence in plan.disagreements:
        screen.prose(f"of several analysts: {sentence}", indent=4)
    for modification in plan.modifications[:_SHOWN]:
        target = modification.target
        where = " ".join([*(target.tensors or ()), *(target.roles or ())])
        where += f" layers {target.layers}" if target.layers else ""
        screen.show()
        screen.show(f"{modification.id}  {described(modification)}")
        screen.show(f"     on {where}")
        screen.prose(modification.reasoning, indent=5)
        screen.prose(f"confidence {modification.confidence:g}; expects: {modification.expected_impact}", indent=5)
        for line in agreed_by(plan, modification.id):
            screen.prose(line, indent=5)
        if modification.id in plan.ungrounded:
            screen.show("     UNGROUNDED: it cites no measured fact")
    if count > _SHOWN:
        screen.show()
        screen.show(f"and {count - _SHOWN} more in the plan")


def agreed_by(plan: Plan, name: str) -> Iterator[str]:
    """Who of several proposed a modification."""
    if agreement := plan.agreement.get(name):
        yield f"proposed by {len(agreement.by)} of {agreement.of}: {'; '.join(agreement.values)}"

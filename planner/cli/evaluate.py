"""`planner evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelArgument

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.evaluation import Calibrated, Controls, Evaluation, Foretold, MetricResult
    from planner.plan import Plan


def command(
    model: ModelArgument,
    baseline: Annotated[str, typer.Option(metavar="MODEL", help="The checkpoint to compare with.")],
    suite: Annotated[Path, typer.Option(metavar="FILE", help="Suite file: metrics, texts, gates.")],
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="What made MODEL from the baseline; default: as its ledger says."),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, max=1000, help="Random plans of the same strengths to compare with; 0 for none.")
    ] = 39,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What was predicted; default: the evidence that --plan names, beside it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of resampling, permutations and random plans.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the evaluation here.")] = None,
    no_record: Annotated[
        bool, typer.Option("--no-record", help="Leave the ledger of MODEL as it is; by default the evaluation goes in.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Did it help? Paired statistics on the same documents, controls, drift, and gates."""
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, profiled
    from planner.cli.origin import by_ledger, by_plan
    from planner.effects import known_evidence
    from planner.errors import EvidenceUnusable, GateRefused
    from planner.evaluation import Side, evaluate, load_suite, with_foretold

    screen = Screen(as_json=as_json)
    if out:
        fsio.require_folder_of(out)
    loaded = load_suite(suite)
    evidence = evidence or (_evidence_of(plan) if plan else None)
    known = known_evidence(evidence) if evidence else None
    before, after = checkpoint_at(baseline), checkpoint_at(model)
    sides = [Side(name=c.name, fingerprint=profiled(c, screen).fingerprint) for c in (before, after)]
    first, second = (str(side.fingerprint) for side in sides)
    wanted, made_by = by_plan(plan, first, controls) if plan else by_ledger(after.path, first, second, controls)
    if known and known[0].checkpoint.fingerprint != first:
        raise EvidenceUnusable(f"{evidence} was measured on other weights than the baseline's", hint="planner probe")
    with screen.progress("loading both models, then evaluating by tokens", unit="tokens") as bar:
        found = evaluate(
            before.path,
            after.path,
            loaded,
            seed=seed,
            controls=wanted,
            progress=bar.set,
            baseline_side=sides[0],
            candidate_side=sides[1],
        )
    if known and wanted.modifications:
        found = with_foretold(found, loaded, before, wanted, known)
    if made_by:
        remember(made_by, found, screen)
    if out:
        fsio.replace_file(out, found.model_dump_json(indent=2).encode() + b"\n")
        screen.say(f"wrote {out}")
    if not no_record:
        _record(after.path, found, screen)
    screen.emit(found)
    show_evaluation(found, screen)
    return 0 if found.accepted else GateRefused.exit_status


def remember(plan: Plan, found: Evaluation, screen: Screen) -> None:
    """Keep what came of the plan, so that its analyst's confidence can be held against it."""
    from planner.analysts import record_evaluation, track_folder
    from planner.errors import StorageError

    try:
        record_evaluation(plan, found, track_folder())
    except StorageError as error:  # the evaluation is what was asked for
        screen.say(f"the track record could not be written: {error.message}")


def _record(model: Path, found: Evaluation, screen: Screen) -> None:
    """Put the evaluation into the history of the candidate, if it has one and may be written."""
    from planner.cli.given import invoking_user
    from planner.errors import Locked, StorageError
    from planner.transaction.evaluated import record_evaluation

    try:
        if record_evaluation(model, found, by=invoking_user()):
            screen.say(f"recorded in the history of {model}")
    except (StorageError, Locked) as error:  # the evaluation is what was asked for
        screen.say(f"not recorded in the history of {model}: {error.message}")


def _evidence_of(plan: Path) -> Path | None:
    """The evidence that the plan names, if it lies beside it."""
    from planner.cli.given import plan_at

    named = plan_at(plan).evidence
    return plan.parent / named.file if named and (plan.parent / named.file).is_file() else None


def show_evaluation(found: Evaluation, screen: Screen) -> None:
    """The metrics, the drift and the gates, for people."""
    from planner.evaluation.statistics import LEVEL
    from planner.evaluation.verdicts import RESOLUTION
    from planner.evaluation.wording import headline

    for metric in found.metrics:
        screen.show(headline(metric))
        screen.show("    raw         " + _compared(metric))
        screen.show("    calibrated  " + (_compared(metric.calibrated) if metric.calibrated else "not finite"))
    screen.show("nats per token, lower is better; calibrated: each side at its own best logit temperature")
    screen.show(f"a verdict asks for p < {LEVEL:g}, adjusted for several metrics, and a difference of {RESOLUTION:g}")
    _show_controls(found.controls, screen)
    if found.foretold:
        _show_foretold(found.foretold, screen)
    drift = found.drift
    kl = "not finite" if drift.kl_mean is None else f"{drift.kl_mean:.3g} nats a token"
    screen.show(f"drift on {drift.text}: KL {kl}, the same most likely token at {drift.top1_agreement:.2%}")
    for gate in found.gates:
        screen.show(f"gate {gate.name}: {'passed' if gate.passed else 'REFUSED'}")
        screen.prose(gate.why, indent=4)


def _show_controls(found: Controls, screen: Screen) -> None:
    alone = found.temperature
    mine = "" if alone.candidate is None else f", the candidate {alone.candidate:+.5f}"
    gain = f"{alone.difference:+.5f} raw" if alone.difference < 0 else f"nothing ({alone.difference:+.5f} raw)"
    temperature = f"temperature alone would gain {gain}{mine}"
    if found.random is None:
        screen.show(f"controls on {found.metric}: {temperature}")
        screen.prose(f"no random plans: {found.no_random}", indent=4)
    else:
        random = found.random
        z = "" if random.z is None else f"z = {random.z:.1f}, "
        better = f"better than {random.n - random.as_good} of {random.n} random plans of the same strengths"
        screen.show(f"controls on {found.metric}: {better} ({z}p = {random.rank_p:.3g}); {temperature}")
        alike = f"{random.improved_raw} raw and {random.improved_calibrated} calibrated"
        screen.show(f'    of the random plans, {alike} would be "improved" by their p-values alone')
    if found.noise_floor is not None:
        floor = found.noise_floor
        screen.show(f"noise floor: {floor.mean:.1g} nats a token; {floor.document:.1g} on one document")


def _show_foretold(found: Foretold, screen: Screen) -> None:
    where = "" if found.same_text else ", which is not the text of the evidence"
    screen.show(f"predicted, and measured on {found.metric}{where}:")
    for name, predicted, measured in (
        ("raw", found.raw, found.measured_raw),
        ("calibrated", found.calibrated, found.measured_calibrated),
    ):
        error = "" if predicted.se is None else f" ± {predicted.se:.2g}"
        came = "not finite" if measured is None else f"{measured:+.5f}"
        screen.show(f"    {name:<10}  {predicted.difference:+.5f}{error}  came out {came}")
    came = "not finite" if found.measured_drift is None else f"{found.measured_drift:.3g}"
    screen.show(f"    {'drift':<10}  {found.drift:.3g}  came out {came}")
    if not found.trusted:
        screen.prose(f"it was not to be trusted: {found.why}", indent=4)


def _compared(side: MetricResult | Calibrated) -> str:
    if side.candidate is None or side.difference is None or side.interval is None:
        return f"{side.baseline:.4f} -> not finite"
    low, high = side.interval
    losses = f"{side.baseline:.4f} -> {side.candidate:.4f}"
    return f"{losses}  {side.difference:+.5f}  95 % [{low:+.5f}, {high:+.5f}]  p = {side.p_value:.4f}"

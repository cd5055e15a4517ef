"""What plans from evidence reach, beside what else could have been done: `make bench-evidence`.

Each case has four disjoint sets of documents, cut at 192 tokens: the evidence is measured on the first, strengths are
tuned on the second, and everything is quoted on the third, which nothing saw; the fourth, from the model's own domain,
shows what it costs there. Documents are dealt by a seeded shuffle, because both texts change along their files.

    temperature   one logit scale, cross-fitted: what is gained without any change of weights
    random        the rules' factors, shuffled within each tensor and inverted at random: 9 plans, mean and best
    TPE           optuna on one log factor a tensor, within 0.8 and 1.25, as many evaluations as the rules may spend
    whole tensors one factor a tensor: the same natural-gradient step from the evidence, its strength tuned
    rows, 1 step  a factor a row, one step from the evidence alone: nothing is run
    rules         `planner propose --analyst rules --evidence E --tune SUITE --budget 30`

Run with `--optuna PYTHON`, an interpreter that has optuna, or without it. stories260k and its texts come from the
folder PLANNER_ASSETS. Differences are in nats per token; below 0 is better.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.analysts import Brief, MeasuredAnalyst, Study
from planner.analysts.measured import GUARDED_DRIFT_WEIGHT, Proposal
from planner.checkpoint import Checkpoint, open_checkpoint
from planner.dtypes import float_dtype
from planner.edits import combined, new_values, resolved, stored_values, surroundings_of
from planner.effects import check, known_evidence
from planner.evaluation import Score, Scorer, load_suite
from planner.evidence import write_evidence
from planner.plan import Plan, Policy
from planner.probes import ProbeRequest, probe
from planner.probes.natural_steps import Point, next_step
from planner.profile import profile_of

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "examples" / "tiny-model"
BUDGET, CUT, RANDOM_PLANS = 30, 192, 9
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
Values = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Texts:
    """The documents of one case."""

    calibration: Sequence[str]
    tuning: Sequence[str]
    held_out: Sequence[str]
    neutral: Sequence[str]
    """Of the model's own domain, for the evidence's drift."""
    own_tuning: Sequence[str]
    own_held_out: Sequence[str]


@dataclass(frozen=True)
class Case:
    """One model and one goal."""

    name: str
    model: Path
    texts: Texts
    margin: float | None = None
    """How much the raw loss in the model's own domain may rise; None: nobody asks."""


def main() -> None:
    """Every case, as far as its files are here."""
    given = argparse.ArgumentParser()
    given.add_argument("--optuna", help="a Python interpreter that has optuna")
    given.add_argument("--only", help="cases whose names hold this")
    options = given.parse_args()
    for case in cases():
        if options.only is None or options.only in case.name:
            with tempfile.TemporaryDirectory(prefix="planner-bench-") as folder:
                os.environ["PLANNER_CACHE"] = str(Path(folder) / "cache")
                Bench(case, Path(folder)).run(options.optuna)


def cases() -> Iterator[Case]:
    """The bundled model, and stories260k where it is."""
    inventory = {part: bundled(f"inventory.{part}") for part in ("calibration", "search", "heldout")}
    stories = {part: bundled(f"stories.{part}") for part in ("calibration", "search", "heldout")}
    own = (stories["calibration"], stories["search"][:60], stories["heldout"][:150])
    yield Case("bundled model, inventory", TINY, Texts(*inventory.values(), *own))
    yield Case("bundled model, stories (its own domain)", TINY, Texts(*stories.values(), *own))
    assets = Path(os.environ.get("PLANNER_ASSETS", REPOSITORY.parent / "shared" / "assets"))
    model = assets / "stories260k"
    if not model.is_dir():
        print(f"no {model}: set PLANNER_ASSETS for the other cases\n")
        return
    wiki, tales = (shuffled(assets / "texts" / f"{name}_1000.json") for name in ("wikitext", "tinystories"))
    parts = (slice(0, 300), slice(300, 500), slice(700, 1000))
    both = Texts(*(wiki[part] for part in parts), *(tales[part] for part in parts))
    yield Case("stories260k, wikitext", model, both)
    yield Case("stories260k, wikitext, own domain at most 0.05 worse", model, both, margin=0.05)
    yield Case(
        "stories260k, its own domain", model, Texts(*(tales[part] for part in parts), *(tales[p] for p in parts))
    )


def bundled(name: str) -> list[str]:
    """A text of the bundled model."""
    lines = (TINY / "texts" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def shuffled(path: Path) -> list[str]:
    """The documents of a file, in an order from a seed."""
    documents: list[str] = json.loads(path.read_text())
    random.Random(0).shuffle(documents)
    return documents


class Bench:
    """One case."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.checkpoint: Checkpoint = open_checkpoint(case.model)
        self.profile = profile_of(self.checkpoint)
        for name in Texts.__dataclass_fields__:
            (folder / f"{name}.json").write_text(json.dumps(getattr(case.texts, name)))
        self.suite = load_suite(self._suite("tune", "tuning", "own_tuning"))
        self.held_out = Scorer(self.checkpoint, load_suite(self._suite("held", "held_out", "own_held_out")))

    def _suite(self, name: str, goal: str, own: str) -> Path:
        lines = []
        for metric, text in (("goal", goal), ("own", own)):
            lines.append(f'[[metric]]\nname = "{metric}"\nkind = "text_loss"\ntext = "{text}.json"\nmax_tokens = {CUT}')
        lines.append('[[gate]]\nrule = "improved"\nmetric = "goal"')
        if self.case.margin is not None:
            lines.append(f'[[gate]]\nrule = "not_worse"\nmetric = "own"\nmargin = {self.case.margin}')
        lines.append(f'[drift]\ntext = "{own}.json"\nmax_tokens = {CUT}')
        (self.folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
        return self.folder / f"{name}.toml"

    def run(self, optuna: str | None) -> None:
        """Print the table of the case."""
        counts = [len(getattr(self.case.texts, name)) for name in ("calibration", "tuning", "held_out")]
        print(f"{self.case.name}: evidence on {counts[0]} documents, tuned on {counts[1]}, quoted on {counts[2]}")
        started = time.perf_counter()
        path = self.probe()
        print(f"probe: {time.perf_counter() - started:.0f} s")
        print(f"{'':22}{'calibrated':>11}  {'95 % interval':>20}{'p':>9}{'raw':>10}{'drift':>8}{'own raw':>9}", end="")
        print(f"{'evals':>7}{'s':>6}")
        self.temperature()
        alone, took = self.proposed(path, tuned=False)
        self.line("rows, 1 step", self.values(alone), 0, took)
        self.whole_tensors(path)
        rules, took = self.proposed(path, tuned=True)
        self.line("rules", self.values(rules), rules.evaluations, took)
        self.random_plans(rules)
        if optuna:
            self.tpe(optuna)
        print(f"rules: {rules.plan.note}\n", flush=True)

    def probe(self) -> Path:
        """The evidence file."""
        everything = len(self.case.texts.calibration)
        request = ProbeRequest(
            text=self.folder / "neutral.json",
            goal_text=self.folder / "calibration.json",
            documents=None,
            groups=max(everything, 2),
            max_tokens=CUT,
        )
        found = probe(self.checkpoint, self.profile.fingerprint, request)
        write_evidence(self.folder / "evidence.json", found.evidence, found.arrays())
        return self.folder / "evidence.json"

    def proposed(self, path: Path, *, tuned: bool) -> tuple[Proposal, float]:
        """The rules' proposal, its factors on disk, and the seconds it took."""
        started, policy, known = time.perf_counter(), Policy(), known_evidence(path)
        brief = Brief(
            goal="bench",
            profile=self.profile,
            policy=policy,
            check=lambda plan: check(plan, self.checkpoint, self.profile, policy, folder=self.folder, evidence=known),
        )
        suite = self.suite if tuned else None
        # Without a suite nothing says that harm counts.
        weight = GUARDED_DRIFT_WEIGHT if self.case.margin is not None else None
        study = Study(self.checkpoint, path, *known, suite=suite, budget=BUDGET, drift_weight=weight)
        file = f"{'tuned' if tuned else 'alone'}.factors.safetensors"
        proposal = MeasuredAnalyst(study).propose(brief, arrays_file=file)
        if proposal.arrays is not None:
            (self.folder / file).write_bytes(proposal.arrays)
        return proposal, time.perf_counter() - started

    def values(self, proposal: Proposal) -> Values | None:
        """What its plan would store; None for an empty plan."""
        plan: Plan = proposal.plan
        if not plan.modifications:
            return None
        around = surroundings_of(self.checkpoint, self.folder)
        return new_values(combined([resolved(m, around) for m in plan.modifications], around), around)

    def temperature(self) -> None:
        """One number."""
        from planner.evaluation.statistics import compare
        from planner.evaluation.temperature import assign_folds, cross_fit

        losses = self.held_out.losses("goal")
        best = cross_fit(losses.curves, assign_folds(self.case.texts.held_out))
        tokens = self.held_out.measured_again("goal")[1]
        raw = compare(best - losses.nll, tokens).difference
        print(f"{'temperature alone':22}{0:>+11.4f}  {'by definition':>20}{'':9}{raw:>+10.4f}{'':8}{'':9}{0:>7}")

    def line(self, name: str, values: Values | None, evaluations: int, seconds: float) -> Score | None:
        """Measure on the held-out documents and print."""
        if values is None:
            print(f"{name:22}{'none proposed':>11}{'':55}{seconds:>10.0f}", flush=True)
            return None
        score = self.held_out.score(values)
        print(f"{name:22}{shown(score)}{evaluations:>7}{seconds:>6.0f}", flush=True)
        return score

    def random_plans(self, rules: Proposal) -> None:
        """As large as the rules' plan, tensor by tensor."""
        if not rules.plan.modifications:
            return
        factors = self._factors(rules)
        started, scores = time.perf_counter(), []
        for seed in range(RANDOM_PLANS):
            generator = np.random.default_rng(seed)
            shuffled_factors = {
                name: generator.permutation(logs) * generator.choice([-1.0, 1.0], len(logs))
                for name, logs in factors.items()
            }
            scores.append(self.held_out.score(scaled(self.checkpoint, shuffled_factors)))
        took = time.perf_counter() - started
        found = [score.metrics["goal"].calibrated for score in scores]
        calibrated = [item.comparison.difference for item in found if item]
        raw = [item.difference for score in scores if (item := score.metrics["goal"].raw)]
        drift = [score.drift.kl_mean for score in scores if score.drift and score.drift.kl_mean]
        mean = f"{np.mean(calibrated):>+11.4f}  {'':>20}{'':9}{np.mean(raw):>+10.4f}{np.mean(drift):>8.3f}"
        print(f"{f'random, mean of {RANDOM_PLANS}':22}{mean}{'':9}{RANDOM_PLANS:>7}{took:>6.0f}")
        best = scores[int(np.argmin(calibrated))]
        print(f"{'random, best':22}{shown(best)}", flush=True)

    def _factors(self, proposal: Proposal) -> dict[str, np.ndarray[Any, Any]]:
        from safetensors.numpy import load

        assert proposal.arrays is not None
        return {name: np.log(values) for name, values in load(proposal.arrays).items()}

    def whole_tensors(self, path: Path) -> None:
        """One factor a tensor, by the same step."""
        started = time.perf_counter()
        _, measured = known_evidence(path)
        count, goal = measured.layout.tensors, measured.goal
        columns = [*range(count), 2 * count]
        point = Point(
            measured.sets["calibrated"].tensors[:, columns], measured.sets["fisher"].tensors[:, columns][None]
        )
        step = next_step([point], goal, None, np.zeros(count))
        if step is None:
            self.line("whole tensors", None, 0, time.perf_counter() - started)
            return
        tuner = Scorer(self.checkpoint, self.suite, metrics=["goal"])
        best: tuple[float, Values] | None = None
        for strength in STRENGTHS:
            logs = dict(zip(measured.layout.shapes, strength * step.move, strict=True))
            values = scaled(self.checkpoint, {name: np.array([log]) for name, log in logs.items()})
            found = tuner.score(values, drift=False).metrics["goal"].calibrated
            if found and (best is None or found.comparison.difference < best[0]):
                best = (found.comparison.difference, values)
        self.line("whole tensors", best[1] if best else None, tuner.spent, time.perf_counter() - started)

    def tpe(self, optuna: str) -> None:
        """optuna in a process of its own, which is told the losses."""
        started = time.perf_counter()
        tuner = Scorer(self.checkpoint, self.suite, metrics=["goal"])
        names = [name for name in self.checkpoint.tensors if name in tuner.changeable]
        best: tuple[float, Values] | None = None
        with subprocess.Popen(
            [optuna, "-c", CHILD, str(len(names)), str(BUDGET)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            for line in child.stdout:
                logs = {name: np.array([log]) for name, log in zip(names, json.loads(line), strict=True)}
                values = scaled(self.checkpoint, logs)
                found = tuner.score(values, drift=False).metrics["goal"].calibrated
                loss = found.comparison.difference if found else 1e9
                if best is None or loss < best[0]:
                    best = (loss, values)
                child.stdin.write(f"{loss}\n")
                child.stdin.flush()
        self.line("TPE, whole tensors", best[1] if best else None, tuner.spent, time.perf_counter() - started)


CHILD = """
import json, sys, warnings
import optuna
warnings.simplefilter("ignore")
optuna.logging.disable_default_handler()
count, budget = map(int, sys.argv[1:])
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
for _ in range(budget):
    trial = study.ask()
    print(json.dumps([trial.suggest_float(str(n), -0.223, 0.223) for n in range(count)]), flush=True)
    study.tell(trial, float(sys.stdin.readline()))
"""


def scaled(checkpoint: Checkpoint, logs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors times factors, of each row, each element of a vector, or all; rounded as they are stored."""
    found = {}
    for name, mine in logs.items():
        dtype = float_dtype(checkpoint.tensors[name].dtype)
        assert dtype is not None
        stored = stored_values(checkpoint, name)
        factors = np.exp(mine).astype(stored.dtype)
        if len(factors) > 1 and stored.ndim > 1:
            factors = factors.reshape(-1, *[1] * (stored.ndim - 1))
        found[name] = dtype.decode(dtype.encode(stored * factors)).astype(np.float32)
    return found


def shown(score: Score) -> str:
    """The columns of the table that are measured."""
    goal, own = score.metrics["goal"], score.metrics["own"]
    if goal.raw is None or goal.calibrated is None or own.raw is None or score.drift is None:
        return f"{'not finite':>11}"
    compared = goal.calibrated.comparison
    interval = f"{compared.interval[0]:+.4f} to {compared.interval[1]:+.4f}"
    drift = score.drift.kl_mean if score.drift.kl_mean is not None else float("nan")
    p = f"{compared.p_value:.2g}"
    return (
        f"{compared.difference:>+11.4f}  {interval:>20}{p:>9}{goal.raw.difference:>+10.4f}{drift:>8.3f}"
        f"{own.raw.difference:>+9.4f}"
    )


if __name__ == "__main__":
    main()

"""Every operation on every role of every family: the verdict against the logits that transformers computes.

By default a choice of cells is tried that holds every role of every family, and every kind of operation on every part
that a role can play. All cells (some 50,000) are tried where PLANNER_SWEEP is set: `make effects-sweep`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.families import FAMILIES
from models.tiny import Tiny
from proving import TRUE_OF, Case, Stand, cases_for, map_of_tiny

from planner.architecture.roles import role_of
from planner.effects.verdicts import Verdict

SWEEP = bool(os.environ.get("PLANNER_SWEEP"))
DECLARED = [key for key, family in FAMILIES.items() if family.model_type != "exaone4"]
SHARE = 21
MOST_UNKNOWN = 0.05


def places(tiny: Tiny) -> dict[tuple[str, str], str]:
    """By role and part: the tensor that stands for it, in layer 1 if there is one."""
    model = map_of_tiny(tiny)
    assert model.known, model.reason
    assert not model.unmapped
    found: dict[tuple[str, str], str] = {}
    for name in sorted(tiny.tensors, key=lambda name: role_of(name).layer != 1):
        found.setdefault((role_of(name).role, model.parameters[name].part), name)
    return found


def claim(verdict: Verdict, kind: str) -> bool:
    """Whether the verdict may stand beside the truth."""
    if verdict.effect == "void":
        return kind == "same"
    return verdict.effect == "unknown" or kind in TRUE_OF.get(verdict.effect, ())


def all_of(stand: Stand) -> Iterator[tuple[tuple[str, str], str, Case]]:
    for role, name in places(stand.tiny).items():
        for case in cases_for(name, stand.tiny.tensors[name], stand.around.model):
            yield role, name, case


def tried(keys: list[str], folder: Path, *, sweep: bool) -> Counter[str]:
    """Try the cells of some families; the count of each effect. Fails on a false claim."""
    wrong: list[str] = []
    reasons: Counter[str] = Counter()
    effects: Counter[str] = Counter()
    seen: dict[str, set[str]] = defaultdict(set)
    for number, key in enumerate(keys):
        stand = Stand(key, folder / key)
        random = np.random.default_rng(number)
        by_role: dict[tuple[str, str], list[tuple[str, Case]]] = defaultdict(list)
        for role, name, case in all_of(stand):
            by_role[role].append((name, case))
        for role, cases in by_role.items():
            done = 0
            for index in random.permutation(len(cases)):
                name, case = cases[index]
                fresh = case.kind not in seen[role[1]]
                if not sweep and done and not fresh:
                    continue
                found = stand.tried(name, case)
                if found is None:
                    continue
                verdict, kind = found
                seen[role[1]].add(case.kind)
                done += 1
                effects[verdict.effect] += 1
                reasons[f"{verdict.effect}: {re.sub(r'[-0-9.]*[0-9]', '0', verdict.why)}"] += 1
                if not claim(verdict, kind):
                    wrong.append(f"{key} {name} {case.label}: {verdict.effect} ({verdict.why}), but {kind}")
            assert done, (key, role)
    assert not wrong, "\n".join(wrong)
    if sweep:
        print("\n".join(f"{count:6} {reason}" for reason, count in reasons.most_common()))
    return effects


# Neighbours in the list share their roles, so that few cells hold every operation on every role.
@pytest.mark.parametrize("share", [DECLARED[start : start + SHARE] for start in range(0, len(DECLARED), SHARE)])
def test_no_claim_is_false_and_few_are_unknown(share: list[str], tmp_path: Path) -> None:
    effects = tried(share, tmp_path, sweep=SWEEP)
    total = sum(effects.values())
    print(f"{total} cells: {dict(effects.most_common())}, {effects['unknown'] / total:.2%} unknown")
    assert effects["unknown"] <= MOST_UNKNOWN * total
    assert effects["invariant"] > 0
    assert effects["effective"] > total / 2

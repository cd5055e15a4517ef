"""The page: template, style, script and data in one file, which may load nothing and run nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from planner.profile import Profile
from planner.report.bins import Histograms
from planner.report.colours import STEPS, scales_css
from planner.report.document import HISTOGRAM_BUDGET, document_of
from planner.report.summary import summary_of
from planner.report.text import script_json

__all__ = ["render"]

_STYLES = ("page.css", "parts.css")
_SCRIPTS = ("core.js", "measures.js", "charts.js", "heatmap.js", "table.js", "detail.js", "main.js")


def render(profile: Profile, histogram: Histograms | None = None, *, budget: int = HISTOGRAM_BUDGET) -> str:
    """The page as HTML. The same profile and histograms give the same page, byte for byte.

    `histogram` is asked for every tensor's value histogram once; without one, or where it answers None, quantiles are
    drawn. All histograms together take at most about `budget` characters; the page says how many were left out.
    """
    document = {**document_of(profile, histogram, budget=budget), "steps": STEPS}
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html")).render(
        **summary_of(profile),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        # The template takes these three as they are: ours, or escaped for the element it stands in.
        style="\n".join([*map(_asset, _STYLES), scales_css()]),
        script=script,
        data=script_json(document),
    )


@cache
def _asset(name: str) -> str:
    return files("planner.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """One closed function, so that nothing of it is a global name."""
    parts = "\n".join(map(_asset, _SCRIPTS))
    return f'(() => {{\n"use strict";\n{parts}\n}})();'

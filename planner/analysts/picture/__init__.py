"""What a language model is shown of a checkpoint: facts of its architecture, what changes would do, what was measured.

Each section is a module that gives lines with priorities; `budget` chooses among them all. Nothing here reads weights
or runs a model. Names pass through the aliases, and every other text of the checkpoint is quoted.
"""

from __future__ import annotations

from planner.analysts.aliases import Aliases
from planner.analysts.base import Brief
from planner.analysts.picture.architecture import architecture
from planner.analysts.picture.budget import Picture, fitted
from planner.analysts.picture.findings import findings
from planner.analysts.picture.groups import grouped
from planner.analysts.picture.rules import effect_rules
from planner.analysts.picture.sensitivities import sensitivities
from planner.analysts.picture.series import series
from planner.analysts.picture.wording import Speaker

__all__ = ["Picture", "picture_of"]


def picture_of(brief: Brief, aliases: Aliases, *, tokens: int, tools: bool = True) -> Picture:
    """The checkpoint of `brief` in at most `tokens` tokens by `estimated_tokens`; the same text every time.

    What does not fit is left out, the least informative first, and the last line says what; with `tools`, that it can
    be asked for. Below 600 tokens there may be no text at all.
    """
    speaker = Speaker(aliases, brief.model)
    groups = grouped(brief.profile.tensors, speaker)
    sections = [
        architecture(brief, speaker, groups),
        effect_rules(brief, speaker, groups),
        sensitivities(brief, speaker, groups),
        findings(brief, speaker),
        series(speaker, groups),
    ]
    return fitted(sections, tokens, tools=tools)

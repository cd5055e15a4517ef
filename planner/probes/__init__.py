"""What needs a model that runs: sensitivities, lenses, and what single weights say in words.

Importing this package loads neither torch nor transformers; its functions do.
"""

from __future__ import annotations

from planner.probes.probe import Probed, ProbeRequest, probe

__all__ = ["ProbeRequest", "Probed", "probe"]

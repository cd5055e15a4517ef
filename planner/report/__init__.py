"""One self-contained HTML page from a profile: heat maps, histograms, spectra, a searchable table. No network."""

from __future__ import annotations

from planner.report.bins import Bins, Histograms
from planner.report.page import render
from planner.report.reading import RENDERED, read_document

__all__ = ["RENDERED", "Bins", "Histograms", "read_document", "render"]

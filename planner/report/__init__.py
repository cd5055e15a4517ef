"""Self-contained HTML pages, no network: a profile's heat maps, histograms and spectra; a conversation with a model."""

from __future__ import annotations

from planner.report.bins import Bins, Histograms
from planner.report.page import render
from planner.report.reading import RENDERED, read_document
from planner.report.transcript_page import is_transcript, render_transcript

__all__ = ["RENDERED", "Bins", "Histograms", "is_transcript", "read_document", "render", "render_transcript"]

"""Histograms counted again for the page, and the colours."""

from __future__ import annotations

import itertools
import math
import re
from importlib.resources import files

import numpy as np
import pytest
from made_profiles import a_tensor

from planner.report.bins import MOST_BINS, binned, rounded
from planner.report.colours import STEPS, diverging, lightness, scales_css, sequential


def test_few_bins_stay_as_they_are():
    assert binned(([0.0, 1.0, 4.0], [3, 5]), a_tensor()) == [[0, 1, 4], [3, 5], 0, 0]


def test_many_bins_become_64_and_no_element_is_lost():
    rng = np.random.default_rng(0)
    counts, edges = np.histogram(rng.normal(0, 0.5, 100_000), bins=3001, range=(-1.5, 2.0))
    found = binned((edges.tolist(), counts.tolist()), a_tensor())
    assert found is not None
    (low, high), inside, below, above = found
    assert (low, high, len(inside)) == (-1.5, 2.0, MOST_BINS)
    assert sum(inside) + below + above == counts.sum()
    exact, _ = np.histogram(np.repeat((edges[1:] + edges[:-1]) / 2, counts), bins=MOST_BINS, range=(-1.5, 2.0))
    assert np.abs(np.array(inside) - exact).max() < counts.max() * 2, "within a bin of the source on either side"


def test_outliers_do_not_squeeze_the_rest_into_one_bar():
    edges = np.linspace(-100, 100, 100_001)
    counts = np.zeros(100_000, dtype=int)
    counts[49_800:50_200] = 10
    counts[0] = counts[-1] = 1
    quantiles = {"0.001": -0.4, "0.999": 0.4}
    found = binned((edges.tolist(), counts.tolist()), a_tensor(quantiles=quantiles))
    assert found is not None
    (low, high), inside, below, above = found
    assert (low, high, below, above) == (-0.5, 0.5, 1, 1)
    assert sum(inside) == 4000
    assert sum(count > 0 for count in inside) > 40


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ([], []),
        ([0.0], []),
        ([0.0, 1.0], [0]),
        ([0.0, 1.0], [1, 2]),
        ([1.0, 0.0], [1]),
        ([0.0, math.inf], [1]),
        ([*np.linspace(-1, 1, 101).tolist()[:-1], math.nan], [1] * 100),
        ([-1.7e308, *range(100), 1.7e308], [1] * 101),
    ],
)
def test_what_is_no_histogram_is_not_drawn(edges, counts):
    assert binned((edges, counts), a_tensor(quantiles={})) is None


def test_a_constant_tensor_has_one_bar():
    assert binned(([2.0, 2.0], [9]), a_tensor()) == [[2, 2], [9], 0, 0]


@pytest.mark.parametrize(
    ("number", "short"), [(None, None), (7, 7), (1 / 3, 0.333333), (-0.0, 0), (2.0, 2), (1.23456789e-30, 1.23457e-30)]
)
def test_numbers_keep_six_digits(number, short):
    assert rounded(number) == short


def steps(scale):
    return [
        math.dist(*(tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in pair))
        for pair in itertools.pairwise(scale)
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_the_lightness_of_the_sequential_scale_goes_one_way(dark):
    scale = sequential(dark=dark)
    levels = [lightness(colour) for colour in scale]
    assert len(scale) == STEPS
    assert levels == sorted(levels, reverse=not dark)
    assert abs(levels[-1] - levels[0]) > 0.6
    change = [abs(b - a) for a, b in itertools.pairwise(levels)]
    assert max(change) < 3 * min(change), "no step looks like a jump"


@pytest.mark.parametrize("dark", [False, True])
def test_the_two_sides_of_the_diverging_scale_are_as_light(dark):
    scale = diverging(dark=dark)
    assert len(set(scale)) == STEPS
    for left, right in zip(scale, reversed(scale), strict=True):
        assert abs(lightness(left) - lightness(right)) < 0.02
    assert all(step > 0 for step in steps(scale))


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_enough(theme):
    css = files("planner.report").joinpath("assets", "page.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: both[theme] for name, *both in pairs}
    for ground in ("bg", "panel", "warn-bg"):
        for ink in ("text", "muted", "accent"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink in ("edge", "bar", "mark"):
        assert contrast(colours[ink], colours["panel"]) >= 3, ink


def test_every_step_has_a_class_for_light_and_dark():
    css = scales_css()
    for letter in "sd":
        assert f".{letter}0{{--ink:light-dark(#" in css
        assert f".{letter}{STEPS - 1}{{--ink:light-dark(#" in css

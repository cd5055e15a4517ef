"""The page in a real browser: no error on its console, links open, clicks work, numbers are those of the profile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_profiles import HOSTILE, a_profile, a_tensor, bell, layered

from planner.profile import peer_groups, standings
from planner.profile.spectra import spectrum_of
from planner.profile.types import Experts
from planner.report import render
from planner.report.text import link_to, plain

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")
TRIES = 2  # a busy machine sometimes does not get a browser up


def browse(url: str, folder: Path) -> tuple[str, list[str]]:
    """The document once its scripts have run, and what stood on the console."""
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--v=0", "--window-size=1280,900"]
    for left in reversed(range(TRIES)):
        try:
            done = subprocess.run(
                [*command, "--virtual-time-budget=5000", "--dump-dom", url],
                capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            if not left:
                raise
        else:
            break
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def opened(tmp_path):
    """Open the page of a profile at a link; or run a script in a page around it, as `inner`, and return its answer."""

    def open_(profile, link="", *, script=None, histogram=bell):
        page = tmp_path / "page.html"
        page.write_text(render(profile, histogram), encoding="utf-8")
        if script is None:
            html, console = browse(page.as_uri() + link, tmp_path)
            assert not console
            return html
        around = tmp_path / "around.html"
        around.write_text(
            f'<iframe id="f" src="page.html{link}" width="400" height="800"></iframe><pre id="answer"></pre><script>'
            "const wait = (ms) => new Promise((done) => setTimeout(done, ms));"
            'const frame = document.getElementById("f"); frame.onload = async () => {'
            "const inner = frame.contentDocument; const win = frame.contentWindow; let answer;"
            f"try {{ answer = await (async () => {{ {script} }})(); }} catch (error) {{ answer = String(error); }}"
            'document.getElementById("answer").textContent = JSON.stringify(answer); };</script>'
        )
        html, console = browse(around.as_uri(), tmp_path)
        assert not console
        return json.loads(unescape(re.search(r'<pre id="answer">(.*?)</pre>', html, re.DOTALL)[1]))

    return open_


def test_errors_on_the_console_are_seen(tmp_path):
    (tmp_path / "bad.html").write_text("<script>nowhere()</script>")
    assert browse((tmp_path / "bad.html").as_uri(), tmp_path)[1]


def test_a_link_opens_a_tensor(opened):
    html = opened(layered(), "#tensor=model.layers.3.down_proj.weight&stat=std&mode=z&theme=dark")
    detail = re.search(r"<aside id=\"detail\".*?</aside>", html, re.DOTALL)[0]
    text = re.sub(r"<[^>]*>", "", detail)
    words = ["model.layers.3.down_proj.weight", "Histogram", "Quantiles", "std in every layer", "Norms of rows"]
    words += ["Norms of the 4 query heads", "Largest elements", "[7, 3]", "stands out", "All statistics"]
    for word in words:
        assert word in text, word
    assert 'data-theme="dark"' in html
    assert len(re.findall(r'class="cell d\d+"', html)) == 12


def test_the_z_of_the_page_is_the_z_of_the_profile(opened):
    profile = layered()
    expected = {s.tensor.name: s.robust_z for group in peer_groups(profile.tensors) for s in standings(group)}
    found = opened(
        profile,
        "#stat=rms",
        script="""return [...inner.querySelectorAll(".tensors tbody tr")].map((row) =>
        [row.cells[0].textContent, row.cells[5].textContent.replace("\\u2212", "-")]);""",
    )
    assert len(found) == 13
    for name, z in found:
        if name in expected:
            assert float(z) == pytest.approx(expected[name], rel=5e-3, abs=5e-3)
        else:
            assert (name, z) == ("model.embed_tokens.weight", "\u2013")


def test_clicks_keys_search_and_sorting(opened):
    answer = opened(
        layered(),
        script="""
        const title = () => inner.getElementById("detail-title")?.textContent ?? "";
        const names = () => [...inner.querySelectorAll(".tensors td.name")].map((cell) => cell.textContent);
        const cells = inner.querySelectorAll(".map .cell"), said = {};
        cells[0].focus();
        cells[0].dispatchEvent(new win.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        said.moved = inner.activeElement === cells[1];
        said.read = inner.getElementById("readout").textContent;
        cells[9].click();
        said.clicked = title();
        said.address = win.location.hash;
        inner.dispatchEvent(new win.KeyboardEvent("keydown", { key: "Escape" }));
        said.closed = inner.getElementById("detail").hidden;
        const sort = (key) => inner.querySelector(`[data-sort="${key}"]`).click();
        sort("stat"); said.largest = names()[0];
        sort("stat"); said.smallest = names()[0];
        const box = inner.getElementById("search");
        box.value = "LAYERS.5 q_"; box.dispatchEvent(new win.Event("input"));
        await wait(300);
        said.found = names(); said.count = inner.getElementById("count").textContent;
        const mode = inner.getElementById("mode");
        mode.value = "z"; mode.dispatchEvent(new win.Event("change"));
        said.colours = inner.querySelectorAll(".map [class*=' d']").length;
        inner.querySelector(".findings a").click();
        await wait(300);
        said.linked = title(); said.kept = win.location.hash;
        inner.getElementById("counts").click();
        said.counts = inner.getElementById("counts").textContent;
        return said;""",
    )
    assert answer["moved"]
    assert answer["read"].startswith("q_proj, layer 1: std 0.11, z ")
    assert answer["clicked"] == "model.layers.3.down_proj.weight"
    assert answer["address"] == "#tensor=model.layers.3.down_proj.weight"
    assert answer["closed"]
    assert (answer["largest"], answer["smallest"]) == ("model.layers.3.down_proj.weight", "model.embed_tokens.weight")
    assert answer["found"] == ["model.layers.5.q_proj.weight"]
    assert answer["count"] == "1 of 13 tensors"
    assert answer["colours"] == 12
    assert answer["linked"] == "model.layers.3.down_proj.weight"
    assert "mode=z" in answer["kept"]
    assert answer["counts"] == "counts: logarithmic"


def test_a_narrow_window_scrolls_down_only(opened):
    profile = layered(60, ("q_proj", "down_proj", "a_role_with_a_very_long_name_indeed_that_goes_on"))
    for link in ("", "#tensor=model.layers.3.down_proj.weight"):
        width, inside, tables = opened(
            profile,
            link,
            script="""const root = inner.documentElement;
            const wide = [...inner.querySelectorAll(".scroll")].some((box) => box.scrollWidth > box.clientWidth);
            const panel = inner.getElementById("detail");
            return [root.scrollWidth, root.clientWidth, wide && panel.scrollWidth <= panel.clientWidth];""",
        )
        assert width <= inside <= 400
        assert tables


def test_hostile_names_run_nothing(opened):
    tensors = [a_tensor(name, role=name, layer=number) for number, name in enumerate(HOSTILE)]
    for name in (HOSTILE[0], HOSTILE[2], HOSTILE[3], "__proto__"):
        html = opened(a_profile(*tensors), link_to(name))
        assert "<img" not in html
        title = unescape(re.sub(r"<[^>]*>", "", re.search(r'<h2 id="detail-title".*?</h2>', html, re.DOTALL)[0]))
        assert title == plain(name)


def test_odd_profiles_draw_without_an_error(opened):
    odd = [
        a_tensor("scalar", shape=(), layer=None, rows=None, heads=(), largest=()),
        a_tensor("empty", shape=(0, 4), std=None, mean=None, min=None, max=None, rms=None, quantiles={}, largest=()),
        a_tensor(
            "bytes", role="up", understood=False, std=None, mean=None, min=None, max=None, quantiles={}, rows=None
        ),
        a_tensor("constant", std=0.0, layer=1),
        a_tensor("huge", std=1e307, min=-1.7e308, max=1.7e308, layer=2),
    ]
    for tensor in odd:
        html = opened(a_profile(*odd), f"#tensor={tensor.name}&mode=linear", histogram=None)
        assert "All statistics" in html
    for profile in (a_profile(), a_profile(odd[2])):
        assert "of " in re.search(r'<p class="muted" id="count".*?</p>', opened(profile))[0]


def test_500_rows_are_drawn_at_a_time(opened):
    profile = a_profile(*(a_tensor(f"model.layers.{layer}.a.weight", layer=layer) for layer in range(701)))
    script = """const rows = () => inner.querySelectorAll(".tensors tbody tr").length;
        const more = inner.getElementById("more");
        const before = rows(); more.click(); return [before, rows(), more.hidden];"""
    assert opened(profile, script=script, histogram=None) == [500, 701, True]


def test_experts_and_spectra_are_drawn(opened):
    series = Experts(
        count=2, mean=(0, 1), std=(1, 2), rms=(1, 2), abs_max=(3, 4), kurtosis=(None, 1), zeros=(0, 9), nonfinite=(0, 0)
    )
    fused = a_tensor("fused", role="experts.up_proj", experts=series)
    numbered = [a_tensor(f"e.{number}", role="experts.down_proj", expert=number) for number in range(4)]
    spectrum = spectrum_of(lambda: [np.diag([4.0, 2.0, 1.0])], (3, 3))
    assert spectrum is not None
    plain_one = a_tensor("matrix", role="q_proj", spectrum=spectrum)
    profile = a_profile(fused, *numbered, plain_one)
    assert "2 experts in this tensor" in opened(profile, "#tensor=fused")
    html = opened(profile, "#tensor=e.2&stat=spectrum_stable_rank")
    assert "of the 4 experts of this role in this layer" in html
    assert "Squared Frobenius norm over" in html or "Sum of the squared singular values" in html
    html = opened(profile, "#tensor=matrix&theme=light")
    assert "Largest 3 singular values" in html
    assert "median std 0.5 (0.5 to 0.5 in 4 tensors)" in html

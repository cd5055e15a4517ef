"""The page as text: sound HTML, everything in it, nothing of a stranger's loose in it, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from made_profiles import HOSTILE, a_finding, a_profile, a_tensor, bell, layered

from planner.cli.console import plain as plain_of_the_terminal
from planner.profile.types import Experts, SameBytes, Tie
from planner.report import render
from planner.report.text import plain, script_json

VOID = {"meta", "link", "br", "input", "img", "hr", "wbr"}


class Page(HTMLParser):
    """Tags balanced; every tag with its attributes; the text outside scripts; the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    @property
    def data(self):
        return json.loads(self.scripts[0])


def hostile_profile():
    tensors = [a_tensor(name, role=name, layer=number) for number, name in enumerate(HOSTILE)]
    return a_profile(
        *tensors,
        name=HOSTILE[0],
        model_type=HOSTILE[1],
        fingerprint=HOSTILE[2],
        planner_version=HOSTILE[4],
        warnings=HOSTILE,
        findings=tuple(a_finding(name, f"about {name}!", kind=HOSTILE[0]) for name in HOSTILE),
        ties=(Tie(names=HOSTILE, stored="different"),),
        same_bytes=(SameBytes(digest="blake3:1", names=HOSTILE, constant=False),),
    )


def test_the_page_is_sound_and_holds_every_tensor_and_finding():
    profile = layered()
    page = Page(render(profile, bell))
    assert page.data["names"] == [tensor.name for tensor in profile.tensors]
    assert page.data["histograms"]["0"] == [bell("")[0], bell("")[1], 0, 0]
    for finding in profile.findings:
        assert finding.sentence in page.text
    assert f"#tensor={profile.findings[0].tensor}" in [attributes.get("href") for _, attributes in page.tags]
    for word in ("made-up", "f" * 64, "qwen3", "416", "832 bytes", "2026-01-01 00:00:00 UTC", "0.1.0", "not said"):
        assert word in page.text


def test_columns_hold_the_statistics_to_six_digits():
    profile = a_profile(a_tensor(std=1 / 3), a_tensor("b", std=None, understood=False))
    data = Page(render(profile)).data
    columns = {measure["key"]: column for measure, column in zip(data["measures"], data["columns"], strict=True)}
    assert columns["std"] == [0.333333, None]
    assert columns["outlier_share"] == [1 / 32, None]
    assert columns["outliers_6"] == [1, None]
    assert columns["rows_cv"] == [0.3, 0.3]
    assert "entropy" not in columns, "nobody has one"
    assert data["largest"]["0"] == [[[7, 3], 1.33333], [[0, 1], -1]]


def test_a_finding_that_does_not_name_its_tensor_is_put_after_it():
    page = Page(render(a_profile(a_tensor("a.b"), findings=(a_finding("a.b", "it is odd"), a_finding("gone", "odd")))))
    assert "a.b: it is odd" in page.text
    assert "gone: odd" in page.text
    assert [a.get("href") for tag, a in page.tags if tag == "a"] == ["#tensors", "#tensor=a.b"]


def test_hostile_names_come_through_as_text():
    html = render(hostile_profile(), bell)
    page = Page(html)
    assert page.data["names"] == list(HOSTILE), "the data are what they were"
    assert [tag for tag, _ in page.tags if tag == "script"] == ["script", "script"]
    assert not [tag for tag, _ in page.tags if tag in {"img", "iframe", "object", "embed", "base", "form", "link"}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for name in HOSTILE:
        assert f"{plain(name)}: about {name}!" in page.text or re.sub(r"\s+", " ", f"about {plain(name)}!") in page.text
    assert "49" not in [word for word in page.words if "7 * 7" in word]
    strange = [c for c in html if not c.isprintable() and c != "\n"]
    assert not strange, "no control or direction-changing character stands in the page"
    assert {int(number): shown for number, shown in page.data["shown"].items()} == {
        number: plain(name) for number, name in enumerate(HOSTILE) if plain(name) != name
    }


def test_links_stay_within_the_page():
    page = Page(render(hostile_profile()))
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links
    assert all(re.fullmatch(r"#(tensors|tensor=[\w.%~-]*)", link or "") for link in links)


@pytest.mark.parametrize("text", ["</script>", "<!--", "&lt;", "\u2028\u2029", "\ud800", "\x00"])
def test_data_cannot_end_their_element(text):
    written = script_json({"name": text})
    assert json.loads(written) == {"name": text}
    assert not set("<>&\u2028\u2029\x00") & set(written)


@pytest.mark.parametrize("text", [*HOSTILE, "ä", "\u00a0", "\ufeff", "\U000e0041"])
def test_names_are_shown_as_the_terminal_shows_them(text):
    assert plain(text) == plain_of_the_terminal(text)


def test_nothing_is_loaded_from_anywhere():
    html = render(hostile_profile(), bell)
    without_data = re.sub(r'<script type="application/json".*?</script>', "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//\w|@import|url\(|\bfetch\b|XMLHttpRequest|WebSocket|import\(", without_data)
    assert not [attributes for _, attributes in Page(html).tags if "src" in attributes or "style" in attributes]
    assert "innerHTML" not in html
    assert "eval(" not in html


def test_the_policy_of_the_page_allows_its_one_script_only():
    page = Page(render(layered()))
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; ")


def test_the_same_profile_gives_the_same_page():
    assert render(layered(), bell) == render(layered(), bell)


def test_without_its_script_the_page_has_a_row_for_each_role():
    html = render(layered())
    (without,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    for role in ("embed_tokens", "q_proj", "down_proj"):
        assert f'<th scope="row">{role}</th>' in without
    assert html.index("Findings") < html.index("<noscript>")


@pytest.mark.parametrize(
    "tensor",
    [
        a_tensor("scalar", shape=(), layer=None, rows=None, heads=(), largest=()),
        a_tensor("empty", shape=(0, 4), std=None, min=None, max=None, abs_max=None, rms=None, quantiles={}),
        a_tensor("bytes", dtype="F8_E4M3", understood=False, std=None, mean=None, min=None, max=None, quantiles={}),
        a_tensor("broken", nan=7, inf=2, negative_inf=1),
        a_tensor("huge", std=1e307, min=-1.7e308, max=1.7e308),
        a_tensor("constant", std=0.0),
        a_tensor("far", layer=999999, expert=3),
    ],
    ids=lambda tensor: tensor.name,
)
def test_odd_tensors_have_a_page(tensor):
    page = Page(render(a_profile(tensor), bell))
    assert page.data["names"] == [tensor.name]
    assert ("7 NaN, 2 infinite" in page.text) == (tensor.name == "broken")


def test_a_profile_without_tensors_has_a_page():
    page = Page(render(a_profile()))
    assert page.data["names"] == []
    assert "Nothing notable was found." in page.text
    assert "No tensors." in page.text


def test_experts_of_a_fused_tensor_are_carried():
    series = Experts(
        count=2, mean=(0, 1), std=(1, 2), rms=(1, 2), abs_max=(3, 4), kurtosis=(None, 1), zeros=(0, 9), nonfinite=(0, 0)
    )
    data = Page(render(a_profile(a_tensor(experts=series)))).data
    assert data["experts"]["0"]["kurtosis"] == [None, 1]
    assert data["experts"]["0"]["zeros"] == [0, 9]


def test_histograms_beyond_the_budget_are_left_out_and_said():
    profile = layered()
    notable = next(i for i, tensor in enumerate(profile.tensors) if tensor.name == profile.findings[0].tensor)
    data = Page(render(profile, bell, budget=100)).data
    assert list(data["histograms"]) == [str(notable)], "the notable tensor comes first"
    assert data["histogramsLeftOut"] == len(profile.tensors) - 1
    assert Page(render(profile)).data["histogramsLeftOut"] == 0

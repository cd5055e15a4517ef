"""A conversation as a page: all of it, each thing once, nothing of a stranger's loose in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_transcripts import a_reply, an_answer, brief_of, conversation, hostile, investigated
from test_report_page import Page

from planner.errors import EndpointUnreachable, FeatureRefused
from planner.llm import Reply, Usage
from planner.report import is_transcript, render_transcript

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = (
    "</pre><script>alert(1)</script>",
    "</style><style>*{display:none}</style><!--",
    "<img src=x onerror=alert(1)> <a href='javascript:alert(1)'>[x](javascript:alert(1))</a>",
    "\u202egnp.exe \u2066isolated \u200bzero \ufeff",
    "escape\x1b[31m null\x00 bell\x07 return\r tab\t next\x85 line\u2028",
    "{{ 7 * 7 }}{% raw %}",
    '{"a": "</details>\\u202e", "b": [1, {"c": "<b>"}]}',
    "\n\n  leading and trailing  \n\n",
    "\ud800 half a pair",
    "",
)


TAGS = re.compile(
    "html|head|meta|title|style|body|a|header|div|p|h1|h2|h3|code|main|section|nav|dl|dt|dd|details|summary|table"
    "|thead|tbody|tr|th|td|ol|li|span|strong|pre|footer"
)
ATTRIBUTES = re.compile("lang|charset|http-equiv|content|name|class|href|id|scope|aria-labelledby")


@pytest.fixture(scope="module")
def brief():
    """What is known of the bundled model."""
    return brief_of(TINY_MODEL)


@pytest.fixture(scope="module")
def transcript(brief):
    """Three calls, one refused; an answer with a problem; a plan."""
    return investigated(brief)


def shown(character):
    """A character that cannot be seen, as it is written instead."""
    return character.encode("unicode_escape").decode()


class Parts(HTMLParser):
    """The texts of `pre` elements, exact; and the whole text of each element that has an id, by id."""

    def __init__(self, html):
        super().__init__()
        self.pre = []
        self.by_id = {}
        self.folded = []
        self._open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ("meta", "br", "wbr"):
            return
        self._open.append((tag, dict(attrs).get("id")))
        if tag != "pre":
            self.handle_data(" ")
        if tag == "pre":
            self.pre.append("")
            self.folded.append("details" in [name for name, _ in self._open])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, name in self._open:
            if name:
                self.by_id[name] = self.by_id.get(name, "") + data
        if self._open and self._open[-1][0] == "pre":
            self.pre[-1] += data


def steps(html):
    """The text of each step, white space made single."""
    found = Parts(html).by_id
    return [" ".join(found[f"step-{n}"].split()) for n in range(1, 1000) if f"step-{n}" in found]


def facts(html):
    """The facts at the top, by label."""
    return dict(re.findall(r"<div><dt>([^<]*)</dt><dd>(?:<code>)?([^<]*)", html.partition("<nav")[0]))


def test_the_head_says_what_was_asked_and_what_it_took(transcript):
    html = render_transcript(transcript)
    found = facts(html)
    assert found["outcome"] == "a plan"
    assert found["requests"] == "5"
    assert found["answers kept from earlier runs"] == "1"
    assert found["tokens sent, as the provider counted"] == "4,000", "what was kept cost nothing"
    assert found["tokens received, as the provider counted"] == "200"
    assert found["cost"] == "$0.0100"
    assert found["tool calls"] == "3, 1 refused"
    assert found["rounds: answers read as a plan"] == "2"
    assert found["first answer valid"] == "no"
    assert found["prompt digest"] == transcript.prompt_sha256
    assert found["plan"] == transcript.plan
    page = Page(html)
    text = " ".join(Parts(html).by_id["main"].split())
    for words in ("fewer mistakes and shorter sentences", "limits: cost usd 0.5", "price: output usd 10"):
        assert words in text, words
    assert f"model-x about tiny-model, {transcript.fingerprint}" in page.text
    assert "brought no plan" not in page.text
    assert page.scripts == []


def test_the_contents_lead_to_every_step_in_order(transcript):
    html = render_transcript(transcript)
    links = [attributes["href"] for tag, attributes in Page(html).tags if tag == "a"]
    assert links == ["#steps", "#seen", *(f"#step-{n}" for n in range(1, 6)), "#seen"]
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    gists = [re.sub("<[^>]*>", "", item) for item in re.findall(r"<li><a href=\"#step-.*", html)]
    assert gists == [
        "Looking: called list_tensors, tensor_statistics",
        "Looking: called tensor_statistics; 1 refused",
        "Looking: it called nothing",
        "Asking for the plan: an answer with 1 problem",
        "Asking for the plan again: the plan was taken",
    ]


def test_each_step_shows_what_was_said_called_answered_and_wrong(transcript, brief):
    html = render_transcript(transcript)
    first, second, third, fourth, fifth = steps(html)
    parts = Parts(html)
    assert "The model said First the statistics." in first
    assert "refused" not in first
    assert 'tensor_statistics {"tensors": ["model.layers.2.mlp.up_prj.weight"]} refused' in second
    assert "attempts 2" in second
    assert "finish reason tool_calls" in second
    assert "That is enough." in third
    problem = transcript.exchanges[3].problems[0]
    assert f"m01: plan-invalid {problem.message} {problem.hint}" in fourth
    assert "answer asked for as json_schema" in fourth
    assert "from an earlier run" in fifth
    for exchange in transcript.exchanges:
        for called in exchange.called:
            assert f"\n{called.result}" in parts.pre, "in full"
    assert json.loads(parts.pre[-1]) == json.loads(an_answer(brief))
    assert '\n  "note": "one careful step",\n  "modifications": [\n' in parts.pre[-1]


def test_the_first_request_is_shown_in_full_folded_and_only_once(transcript):
    html = render_transcript(transcript)
    parts = Parts(html)
    system, task = (message.content for message in transcript.exchanges[0].request.messages)
    assert parts.pre.count(f"\n{system}") == parts.pre.count(f"\n{task}") == 1
    assert sum(task[:2000] in text for text in parts.pre) == 1, "although the question for the plan begins with it"
    assert parts.folded[parts.pre.index(f"\n{system}")]
    assert parts.folded[parts.pre.index(f"\n{task}")]
    assert f"Task message: {len(task):,} characters" in Page(html).text
    for tool in transcript.exchanges[0].request.tools:
        assert tool.name in parts.by_id["seen"]
        assert tool.description in parts.by_id["seen"]


def test_a_step_shows_only_what_is_new_and_counts_the_rest(transcript):
    _, second, third, fourth, fifth = steps(render_transcript(transcript))
    shown_above = "not shown again: {} messages sent before, 1 answer of the model shown above, {} shown above."
    assert f"5 messages in all; {shown_above.format(2, '2 tool results')}" in second
    assert f"7 messages in all; {shown_above.format(5, '1 tool result')}" in third
    first, last = (transcript.exchanges[place].request.messages[1].content for place in (0, 3))
    differs = next(place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    shared = first.rfind("\n", 0, differs) + 1
    assert "2 messages in all; not shown again: 1 message sent before." in fourth
    assert shared > 5000
    assert f"begins with the {shared:,} characters sent in step 1" in fourth
    assert "What you looked at" in fourth, "the rest of it"
    assert "4 messages in all; not shown again: 2 messages sent before, 1 answer of the model shown above." in fifth
    assert "Your answer cannot be used as it is." in fifth


def test_what_the_model_did_not_say_is_not_taken_for_its_words(transcript):
    """A file that somebody edited: the answer that a later request repeats is another one."""
    last = transcript.exchanges[-1]
    changed = [
        message.model_copy(update={"content": "words put into its mouth"}) if message.role == "assistant" else message
        for message in last.request.messages
    ]
    edited = last.model_copy(update={"request": last.request.model_copy(update={"messages": tuple(changed)})})
    html = render_transcript(transcript.model_copy(update={"exchanges": (*transcript.exchanges[:-1], edited)}))
    assert "words put into its mouth" in steps(html)[-1]


def test_a_plan_at_once_is_a_valid_first_answer(brief):
    html = render_transcript(conversation(brief, [a_reply(an_answer(brief))], tools=False))
    found = facts(html)
    assert (found["rounds: answers read as a plan"], found["first answer valid"]) == ("1", "yes")
    assert found["cost"] == "price not known"
    assert "the plan was taken" in steps(html)[0]


def test_a_plan_written_instead_of_another_call_is_the_first_answer(brief):
    script = [a_reply("", ("list_tensors", "{}")), a_reply(an_answer(brief, confidence=7)), a_reply(an_answer(brief))]
    html = render_transcript(conversation(brief, script))
    found = facts(html)
    assert (found["rounds: answers read as a plan"], found["first answer valid"]) == ("2", "no")
    assert "an answer with 1 problem" in steps(html)[1]
    found = facts(render_transcript(conversation(brief, [script[0], script[2]])))
    assert (found["rounds: answers read as a plan"], found["first answer valid"]) == ("1", "yes")


def test_a_conversation_that_failed_says_how_and_what_to_do(brief):
    gone = EndpointUnreachable("no answer in 300 s", hint="is the server running?")
    html = render_transcript(conversation(brief, [a_reply("", ("list_tensors", "{}")), gone]))
    assert "This conversation brought no plan: endpoint-unreachable." in Page(html).text
    assert facts(html)["outcome"] == "no plan: endpoint-unreachable"
    assert facts(html)["first answer valid"] == "there was none"
    last = steps(html)[-1]
    assert "endpoint-unreachable no answer in 300 s is the server running?" in last
    assert "failed: endpoint-unreachable" in last


def test_calls_written_as_json_are_shown_like_others(brief):
    refused = FeatureRefused("tools are not supported", hint="nothing to do", feature="tools")
    calls = json.dumps({"calls": [{"tool": "list_tensors", "arguments": "{}"}]})
    script = [refused, a_reply(calls), a_reply('{"calls": []}'), a_reply(an_answer(brief))]
    html = render_transcript(conversation(brief, script))
    first, second, third, fourth = steps(html)
    assert "failed: feature-refused" in first
    assert "called list_tensors" in second
    assert "characters sent in step 1, not shown again" in second
    assert "When you have seen enough" in second, "what is new: how calls are written"
    assert "it called nothing" in third
    assert "the plan was taken" in fourth
    assert facts(html)["first answer valid"] == "yes"


@pytest.mark.parametrize("asked", [False, True], ids=["nothing was asked", "nothing came back"])
def test_a_conversation_that_was_cut_short_is_a_page_too(transcript, asked):
    lost = transcript.exchanges[0].model_copy(update={"reply": None, "called": ()})
    cut = transcript.model_copy(update={"exchanges": (lost,) if asked else (), "outcome": ""})
    page = Page(render_transcript(cut))
    assert "brought no plan: it was not finished." in page.text
    assert ("no answer was recorded" if asked else "Nothing was asked.") in page.text


def test_known_prices_are_added_up(brief):
    priced = [
        Reply(
            text=text,
            model="m",
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=1, cost_usd=0.25),
            attempts=1,
        )
        for text in ("no plan", an_answer(brief))
    ]
    assert facts(render_transcript(conversation(brief, priced, tools=False)))["cost"] == "$0.5000"


@pytest.mark.parametrize("text", EVIL)
def test_hostile_text_comes_through_as_text(text):
    if "\ud800" in text:  # never in a file, but a page is no place to fail
        html = render_transcript(hostile("sound").model_copy(update={"goal": text, "record": text}))
    else:
        html = render_transcript(hostile(text))
    page = Page(html)
    assert all(TAGS.fullmatch(tag) for tag, _ in page.tags)
    assert all(ATTRIBUTES.fullmatch(name) for _, found in page.tags for name in found)
    assert html.count("<style>") == 1
    for _, found in page.tags:
        assert re.fullmatch(r"#(steps|seen|step-\d+)", found.get("href") or "#seen")
        assert re.fullmatch(r"[a-z0-9 -]+", found.get("class") or "plain")
    strange = {c for c in html if not c.isprintable()} - {"\n"}
    assert not strange, "no control or direction-changing character stands in the page"
    lines = ("".join(c if c.isprintable() else shown(c) for c in part) for part in text.split("\n"))
    pre = Parts(html).pre
    assert "\n" + "\n".join(lines) in pre, "the goal, exactly"
    html.encode()


def test_the_page_may_run_and_load_nothing(transcript):
    html = render_transcript(transcript)
    policies = [found["content"] for tag, found in Page(html).tags if found.get("http-equiv")]
    assert len(policies) == 1
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'", policies[0]
    )
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<body>")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert not re.search(r"@import|url\(", style)


def test_a_megabyte_in_every_field_is_folded_and_whole():
    text = "a megabyte <b>\u202e\n" * 62_500
    began = time.process_time()
    html = render_transcript(hostile(text))
    assert time.process_time() - began < 60, "linear, not more"
    head = html.partition("<nav")[0]
    assert len(re.sub(r"<pre>.*?</pre>|<style>.*?</style>", "", head, flags=re.DOTALL)) < 20_000
    assert "1,000,000 characters" in head
    assert html.count("a megabyte &lt;b&gt;\\u202e\n" * 62_500) > 10
    assert html.count("<pre>") == len(re.findall(r"</summary>\s*<pre>", html)), "each behind its length"


def test_the_same_transcript_gives_the_same_page(transcript):
    again = type(transcript).model_validate_json(transcript.encoded(()))
    assert render_transcript(again) == render_transcript(transcript)


def test_the_page_of_a_profile_needs_no_analyst():
    code = "import sys, planner.report; print([m for m in sys.modules if m.startswith(('planner.analysts', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"schema": "planner/transcript@2"}', True),
        ('{"model": "m", "schema": "planner/transcript@1"}', True),
        ('{\n "schema" : "planner/transcript@2", "goal": "cut off he', True),
        ('{"schema": "planner/profile@1", "name": "planner/transcript@2"}', False),
        ('{"schema": "planner/profile@1", "name": "planner/transcript@', False),
        ('{"schema": ["planner/transcript@2"]}', False),
        ('["planner/transcript@2"]', False),
        ("", False),
    ],
)
def test_a_transcript_is_known_by_its_schema(text, answer):
    assert is_transcript(text) is answer


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("which", ["real", "hostile"])
def test_a_browser_draws_it_and_has_nothing_to_complain_about(transcript, tmp_path, which):
    """The style is applied, which its digest in the policy must allow; and no page is wider than a telephone."""
    made = transcript if which == "real" else hostile("<script>alert(1)</script>" + "w" * 5000)
    page = tmp_path / "page.html"
    page.write_text(render_transcript(made), encoding="utf-8")
    around = tmp_path / "around.html"
    around.write_text(
        '<iframe id="f" src="page.html" width="400" height="800"></iframe><pre id="answer"></pre><script>'
        'const frame = document.getElementById("f"); frame.onload = () => {'
        "const inner = frame.contentDocument; for (const d of inner.querySelectorAll('details')) d.open = true;"
        'document.getElementById("answer").textContent = JSON.stringify({'
        "wide: inner.documentElement.scrollWidth, scripts: inner.scripts.length,"
        'wrap: frame.contentWindow.getComputedStyle(inner.querySelector("pre")).whiteSpace }); };</script>'
    )
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [
        f"--user-data-dir={tmp_path / 'browser'}",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    for last in (False, True):  # a busy machine sometimes does not get a browser up
        try:
            done = subprocess.run([*command, around.as_uri()], capture_output=True, text=True, timeout=60, check=True)
            break
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            if last:
                raise
    assert not [said for said in done.stderr.splitlines() if "CONSOLE" in said]
    answer = json.loads(re.search(r'<pre id="answer">(.*?)</pre>', done.stdout)[1])
    assert answer["scripts"] == 0
    assert answer["wrap"].startswith(("pre-wrap", "break-spaces"))
    assert answer["wide"] <= 400

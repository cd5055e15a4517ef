"""One model or several are asked, each as often as wanted; every conversation is kept, and several plans become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from planner import fsio
from planner.analysts.base import Brief
from planner.analysts.budget import spent
from planner.analysts.choice import AnalystChoice
from planner.analysts.llm import LLMAnalyst
from planner.analysts.merging import merged
from planner.analysts.prompts import prompts_sha256
from planner.analysts.replay import ReplayClient
from planner.analysts.settings import Asking, Price
from planner.analysts.track_record import track_folder, track_record
from planner.analysts.transcript import Transcript, policy_sha256, read_transcript
from planner.errors import AnalystFailed, NoValidPlan, TranscriptUnusable, UsageError
from planner.llm import Client, client_for, secrets_in
from planner.llm.kept_answers import KeptAnswers
from planner.llm.ladder import Ladder
from planner.llm.prices import price_of
from planner.llm.redacting import RedactingClient
from planner.plan import Plan
from planner.profile.store import cache_folder

__all__ = ["ask_panel", "replayed_plan", "transcript_path"]

Told = Callable[[str], None]
Attempt = tuple[str, int, Callable[[], tuple[Plan, str]]]
"""The model, which of its samples, and how to get its plan and the name of its transcript."""


def transcript_path(plan: Path) -> Path:
    """Where the next transcript of a plan goes: plan.transcript.json, numbered if an earlier try left one."""
    names = (".transcript.json", *(f".transcript-{number}.json" for number in range(2, 1000)))
    free = (path for path in map(plan.with_suffix, names) if not path.exists())
    return next(free, plan.with_suffix(names[-1]))


def ask_panel(out: Path, brief: Brief, choice: AnalystChoice, *, environment: Mapping[str, str], tell: Told) -> Plan:
    """The plan of the models of `choice`, merged where there are several. Nothing is sent before all can be asked.

    Raises what the last of them raised where none gave a plan.
    """
    priced = {name: _priced(choice, name) for name in choice.llm}
    clients = {name: _client(name, choice, environment) for name in choice.llm}

    def attempt(name: str, sample: int) -> Attempt:
        asking = choice.asking(sample).model_copy(update={"price": priced[name]})
        return name, sample, lambda: _asked(out, brief, clients[name], asking, environment=environment, tell=tell)

    try:
        return _together([attempt(name, n) for name in choice.llm for n in range(choice.samples)], brief, tell)
    finally:
        for client in clients.values():
            client.close()


def replayed_plan(
    transcripts: Sequence[Path], brief: Callable[[str], Brief], *, partial: bool = False, tell: Told
) -> Plan:
    """The plan of recorded conversations, played again without network; `brief` is given their goal.

    With `partial` the valid part of the last answer is kept, whatever was asked for then.

    Raises `TranscriptUnusable` where the questions would be others now, and what the conversations ended with.
    """
    kept = [read_transcript(path) for path in transcripts]
    known = brief(kept[0].goal)
    for path, transcript in zip(transcripts, kept, strict=True):
        _require_same(path, transcript, known)

    def attempt(path: Path, transcript: Transcript) -> Attempt:
        def play() -> tuple[Plan, str]:
            client = ReplayClient(transcript)
            asking = transcript.asking.model_copy(update={"partial": partial or transcript.asking.partial})
            analyst = LLMAnalyst(client, asking, record=transcript.record, tell=tell, replayed=transcript)
            return analyst.propose(known), path.name

        return transcript.model, transcript.asking.sample, play

    return _together([attempt(*each) for each in zip(transcripts, kept, strict=True)], known, tell)


def _require_same(path: Path, transcript: Transcript, brief: Brief) -> None:
    """Raises `TranscriptUnusable` that names what is other than it was."""
    evidence = brief.evidence[0].id if brief.evidence else None
    differs = [
        what
        for what, now, then in (
            ("the checkpoint", brief.profile.fingerprint, transcript.fingerprint),
            ("the policy", policy_sha256(brief.policy), transcript.policy_sha256),
            ("the evidence", evidence, transcript.evidence),
            ("the planner's prompts", prompts_sha256(), transcript.prompt_sha256),
        )
        if now != then
    ]
    if differs:
        raise TranscriptUnusable(
            f"{path} was a conversation about something else; what differs: {', '.join(differs)}",
            hint="replay with the checkpoint, --policy, --evidence and the planner that it was made with",
        )


def _together(attempts: Sequence[Attempt], brief: Brief, tell: Told) -> Plan:
    """The one plan there is, or all of them merged."""
    asked = Counter(name for name, _, _ in attempts)
    plans: list[Plan] = []
    names: list[str] = []
    files: list[str] = []
    silent: list[str] = []
    for place, (name, sample, ask) in enumerate(attempts, start=1):
        label = name if asked[name] == 1 else f"{name}#{sample + 1}"
        if len(attempts) > 1:
            tell(f"{place} of {len(attempts)}: {label}")
        try:
            plan, file = ask()
        except AnalystFailed as error:
            if len(attempts) == 1 or (place == len(attempts) and not plans):
                raise
            silent.append(f"{label} gave no plan: {error.message}"[:500])
            tell(silent[-1])
            continue
        plans.append(plan)
        names.append(label)
        files.append(file)
    plan = plans[0] if len(attempts) == 1 else merged(plans, names, brief)
    # The same conversations make the same plan, its name included.
    first = {"id": plans[0].id, "created": plans[0].created, "disagreements": (*plan.disagreements, *silent)}
    return plan.model_copy(update={**first, "analyst": plan.analyst.model_copy(update={"transcripts": tuple(files)})})


def _asked(
    out: Path, brief: Brief, client: Client, asking: Asking, *, environment: Mapping[str, str], tell: Told
) -> tuple[Plan, str]:
    """One conversation, and the name of the file that keeps it."""
    secrets = secrets_in(environment)
    known = track_record(track_folder(environment), "llm", client.name)
    analyst = LLMAnalyst(client, asking, record=known.sentence() if known.plans else "", secrets=secrets, tell=tell)
    kept = transcript_path(out)
    if isinstance(client, KeptAnswers):
        client.begin()
    try:
        return analyst.propose(brief), kept.name
    except NoValidPlan:
        if isinstance(client, KeptAnswers):
            client.forget()
        raise
    finally:
        transcript = analyst.transcript
        if transcript and transcript.exchanges:
            fsio.replace_file(kept, transcript.encoded(secrets))
            tell(_spent(transcript))
            tell(f"wrote {kept}: everything that was sent and answered")


def _spent(transcript: Transcript) -> str:
    """What a conversation took, in a line."""
    replies = [exchange.reply for exchange in transcript.exchanges if exchange.reply]
    usage, earlier = spent(replies, transcript.asking.price), sum(reply.cached for reply in replies)
    kept = f", {earlier} answered from an earlier run" if earlier else ""
    dollars = f", {usage.cost_usd:.4f} US dollars" if usage.cost_usd else ""
    count = len(transcript.exchanges)
    return (
        f"{count} request{'s' * (count != 1)}{kept}; {usage.input_tokens:,} tokens sent, "
        f"{usage.output_tokens:,} received{dollars}"
    )


def _client(name: str, choice: AnalystChoice, environment: Mapping[str, str]) -> Client:
    """The model behind everything that stands before it: kept answers, the ladder of formats, redaction."""
    inner = client_for(name, base_url=choice.base_url, timeout_s=choice.timeout_s, environment=environment)
    endpoint: str = getattr(inner, "endpoint", "litellm")
    cache = cache_folder(environment)
    memory = cache / "endpoints.json" if choice.cache else None
    ladder = Ladder(RedactingClient(inner, secrets_in(environment)), memory=memory, endpoint=endpoint)
    return KeptAnswers(ladder, cache / "answers", endpoint=endpoint) if choice.cache else ladder


def _priced(choice: AnalystChoice, name: str) -> Price | None:
    """What a model costs. Raises UsageError where a limit in dollars cannot be kept because nobody knows."""
    if choice.price:
        return choice.price
    known = None if choice.base_url else price_of(name)  # who else serves a model of that name has a price of his own
    if known is None and choice.limits.cost_usd is not None:
        raise UsageError(
            f"the price of {name} is not known, so a limit in dollars cannot be kept",
            hint="say it: --price IN,OUT in US dollars per million tokens; or limit the tokens with --max-tokens",
        )
    return Price(input_usd=known.input_usd * 1e6, output_usd=known.output_usd * 1e6) if known else None

"""A larger language model studies what is known, looks at what it wants to see, and writes the plan.

Nothing the model says is trusted: its text is read strictly and then checked like any other plan. What is wrong with it
goes back in one message, at most N times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.analysts.aliases import Aliases
from planner.analysts.answer import looks_like_json
from planner.analysts.base import Brief, drafted
from planner.analysts.budget import Budget, spent
from planner.analysts.investigation import Findings, Investigation, shortened
from planner.analysts.judging import UNGROUNDED, Judged, judged, rescued
from planner.analysts.opening import context_limit, opening_of
from planner.analysts.prompts import prompts_sha256, render
from planner.analysts.settings import Asking, ToolUse
from planner.analysts.tools import Bench, offered
from planner.analysts.transcript import Recorder, Transcript, policy_sha256
from planner.analysts.wire import answer_shape
from planner.errors import AnalystFailed, EndpointUnreachable, NoValidPlan, PlannerError
from planner.llm import Client, Message, Reply, Request, redact
from planner.llm.redacting import RedactingClient
from planner.plan import AnalystRecord, EvidenceRef, Plan, Problem

__all__ = ["LLMAnalyst"]

_LONGEST_PROBLEM = 2000
_MOST_PROBLEMS = 60
_MOST_CHARACTERS_A_TOKEN = 8
_MOST_TOLD = 6

Told = Callable[[str], None]


class LLMAnalyst:
    """Asks one model, once for each plan; `transcript` holds everything, also after a failure."""

    def __init__(
        self,
        client: Client,
        asking: Asking | None = None,
        *,
        record: str = "",
        secrets: Sequence[str] = (),
        tell: Told | None = None,
        replayed: Transcript | None = None,
    ) -> None:
        self._client: Client = RedactingClient(client, secrets) if secrets else client
        self._asking = asking or Asking()
        self._secrets = tuple(secrets)
        self._tell = tell or _silent
        self._record = record
        self._replayed = replayed
        self._recorder: Recorder | None = None

    @property
    def transcript(self) -> Transcript | None:
        """Everything so far; None before the first question."""
        return self._recorder.transcript if self._recorder else None

    def propose(self, brief: Brief) -> Plan:
        """A plan that the check accepts.

        Raises `NoValidPlan` with the last problems, `LimitReached`, or what the client raises.
        """
        empty = self._empty(brief)
        self._recorder = Recorder(self._client, self._begun(brief, empty))
        try:
            plan = self._proposed(brief, empty)
        except PlannerError as error:
            self._recorder.end(error.code)
            raise
        except KeyboardInterrupt:
            self._recorder.end("interrupted")
            raise
        self._recorder.end("plan")
        return plan

    def _proposed(self, brief: Brief, empty: Plan) -> Plan:
        assert self._recorder is not None
        asking = self._asking
        aliases = Aliases((tensor.name for tensor in brief.profile.tensors), brief.model)
        bench = Bench(brief, aliases)
        budget = Budget(asking.limits, asking.price)
        tool_use = self._recorder.transcript.tool_use
        tools = offered(bench) if tool_use != "none" else ()
        limit = context_limit(brief, asking.context_tokens)
        steps = asking.limits.steps
        opening = opening_of(
            brief, aliases, tokens=limit, tools=tools, steps=steps, record=self._record, clean=self._clean
        )
        verb = "replaying" if self._replayed else "asking"
        self._tell(f"{verb} {self._client.name}: {opening.tokens:,} tokens to begin with")
        if opening.left_out:
            self._tell(f"    left out to fit: {'; '.join(opening.left_out)}")
        found = Findings((), None, tool_use)
        if tools and steps:
            found = Investigation(
                self._recorder, bench, budget, asking, context_tokens=limit, tell=self._tell, clean=self._clean
            ).run(opening.messages, opening.look, tool_use)
        system, task = opening.messages
        content = "\n\n".join(part for part in (task.content, found.as_text(), render("answer.md")) if part)
        messages: tuple[Message, ...] = (system, Message(role="user", content=self._clean(content)))
        text = found.answer if found.answer and looks_like_json(found.answer) else None
        return self._settled(brief, bench, empty, budget, messages, text, found)

    def _settled(
        self,
        brief: Brief,
        bench: Bench,
        empty: Plan,
        budget: Budget,
        messages: tuple[Message, ...],
        text: str | None,
        found: Findings,
    ) -> Plan:
        """Ask for the plan until there is one. `text` is the first answer, where the model gave it unasked."""
        assert self._recorder is not None
        best: Judged | None = None  # nothing wrong with it but that it cites nothing
        last = Judged(None, ())
        rounds = 0
        for round_ in range(self._asking.repairs + 1):
            if text is None:
                if round_:
                    self._tell(f"asking again, with {_counted(len(last.problems), 'problem')} to mend:")
                    for problem in last.problems[:_MOST_TOLD]:
                        self._tell(f"    {shortened(str(problem), longest=160)}")
                try:
                    text = self._asked(messages, budget, brief, repair=bool(round_)).text
                except AnalystFailed:
                    if best is None:
                        raise
                    break
            last = judged(text, brief, bench.aliases, empty)
            rounds += 1
            self._recorder.amend(problems=last.problems)
            if last.acceptable and (not last.problems or round_ == self._asking.repairs):
                return self._signed(last, found, rounds=rounds)
            if last.acceptable:
                best = last
            must, better = (
                _listed([p for p in last.problems if (p.code == UNGROUNDED) is soft], bench) for soft in (False, True)
            )
            repair = self._clean(render("repair.md", must=must, better=better))
            back = _given_back(text, self._asking.max_output_tokens)
            messages += (Message(role="assistant", content=back), Message(role="user", content=repair))
            text = None
        if best is not None:
            return self._signed(best, found, rounds=rounds)
        if self._asking.partial and (kept := rescued(last, brief)):
            plan, dropped = kept
            for problem in last.problems:
                self._tell(f"left out: {shortened(str(problem), longest=300)}")
            at_fault = ", ".join(dict.fromkeys(p.modification for p in last.problems if p.modification))
            note = f"partial: {_counted(dropped, 'modification')} of the answer could not be used ({at_fault})"
            note = f"{note}; what its author says of the whole: {plan.note}"[:2048]
            kept_part = Judged(plan.model_copy(update={"note": note}), last.problems)
            return self._signed(kept_part, found, rounds=rounds)
        raise NoValidPlan(
            f"{_counted(rounds, 'answer')} of {self._client.name}, none of them a valid plan",
            hint="try a stronger model, more --repairs, --partial to keep what is valid, or `--analyst rules`; "
            "the transcript holds every answer",
            problems=tuple(map(str, last.problems)),
        )

    def _asked(self, messages: tuple[Message, ...], budget: Budget, brief: Brief, *, repair: bool) -> Reply:
        assert self._recorder is not None
        asking = self._asking
        request = Request(
            messages=messages,
            max_output_tokens=asking.max_output_tokens,
            temperature=asking.temperature,
            seed=asking.seed,
            sample=asking.sample,
            shape=answer_shape(brief.policy),
        )
        budget.require(request)
        if not repair:
            self._tell("asking for the plan")
        within = min(asking.timeout_s, budget.left_s)
        try:
            reply = self._recorder.ask(request, "repair" if repair else "answer", within_s=within)
        except EndpointUnreachable as error:
            raise budget.blamed(error) from None
        budget.spend(request, reply)
        if reply.cached:
            self._tell("    answered from an earlier run (--no-cache asks anew)")
        return reply

    def _signed(self, found: Judged, findings: Findings, *, rounds: int) -> Plan:
        """The plan with the record of how it was made."""
        assert self._recorder is not None
        assert found.plan is not None
        exchanges = self._recorder.transcript.exchanges
        replies = [exchange.reply for exchange in exchanges if exchange.reply]
        record = AnalystRecord(
            kind="llm",
            model=(replies[-1].model or self._clean(self._client.name))[:200],
            asked_for=self._clean(self._client.name)[:200],
            prompt_sha256=self._recorder.transcript.prompt_sha256,
            requests=len(replies),
            usage=spent(replies, self._asking.price),
            temperature=self._asking.temperature,
            seed=self._asking.seed,
            tool_calls=findings.calls,
            rounds=rounds,
            first_answer_valid=rounds == 1 and not found.problems,
        )
        return found.plan.model_copy(update={"analyst": record})

    def _empty(self, brief: Brief) -> Plan:
        plan = drafted(brief, AnalystRecord(kind="llm", model=self._clean(self._client.name)[:200]), ())
        if self._replayed:
            plan = plan.model_copy(update={"id": self._replayed.plan, "created": self._replayed.created})
        if brief.evidence and brief.evidence_file:
            reference = EvidenceRef(file=brief.evidence_file, id=brief.evidence[0].id)
            plan = plan.model_copy(update={"evidence": reference})
        return plan

    def _begun(self, brief: Brief, empty: Plan) -> Transcript:
        known: bool | None = getattr(self._client, "native_tools", None)
        tool_use: ToolUse = "none" if not self._asking.tools else "protocol" if known is False else "native"
        return Transcript(
            model=self._client.name,
            prompt_sha256=prompts_sha256(),
            goal=brief.goal,
            checkpoint=brief.profile.name,
            fingerprint=brief.profile.fingerprint,
            policy_sha256=policy_sha256(brief.policy),
            evidence=brief.evidence[0].id if brief.evidence else None,
            asking=self._asking,
            tool_use=tool_use,
            plan=empty.id,
            created=empty.created,
            record=self._record,
        )

    def _clean(self, text: str) -> str:
        """Without any secret: what the user's files hold by mistake is not sent either."""
        return redact(text, self._secrets)


def _given_back(text: str, max_output_tokens: int) -> str:
    """An answer as it goes back to its author: whole, unless it is far longer than it may be."""
    most = _MOST_CHARACTERS_A_TOKEN * max_output_tokens
    return text if len(text) <= most else f"{text[:most]}\n[cut here: {len(text):,} characters]"


def _listed(problems: Sequence[Problem], bench: Bench) -> list[str]:
    """A line each, and how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    return [_told(problem, bench) for problem in problems[:_MOST_PROBLEMS]] + ([f"and {more} more"] if more > 0 else [])


def _told(problem: Problem, bench: Bench) -> str:
    """One line, whatever the answer called its fields: a line of its own would look like one of ours."""
    return " ".join(bench.told(str(problem)).split())[:_LONGEST_PROBLEM]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _silent(_: str) -> None:
    pass

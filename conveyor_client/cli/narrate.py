"""What is said about a stream of events. Pure: messages in, utterances out.

The narrator keeps what was already said about each message, so that live pieces, repeated pieces,
a new attempt's pieces and the complete message together show every text once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from conveyor.common.v1 import question_pb2 as question_pb
from conveyor.events.v1 import event_pb2 as event_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import announcement_pb2 as announcement_pb
from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.cli.acp_words import HarnessTeller, decided_line
from conveyor_client.cli.asking import ways
from conveyor_client.cli.output import seconds, state_word, text_of, tokens
from conveyor_client.cli.places import fate, place
from svckit.contract_words import asked_for
from svckit.grpc.status import from_proto
from svckit.words import last_lines, shorten, span, time_limit


class Voice(Enum):
    """How an utterance is to be shown."""

    NEWS = "news"
    """A line about what happens."""
    GOOD = "good"
    """A line about something that went well."""
    BAD = "bad"
    """A line about something that went wrong."""
    PIECE = "piece"
    """Text to put behind what was said before, without a line break."""
    BREAK = "break"
    """The message shown in pieces ends here."""
    MESSAGE = "message"
    """A whole message of the agent."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """Something to show."""

    voice: Voice
    text: str = ""


Item = gateway_pb.ChatResponse | gateway_pb.WatchSessionResponse


class Narrator:
    """Tells a stream of `Chat` or `WatchSession`.

    `live` shows the pieces of messages as they come. `thorough` also tells state changes, tool
    calls and what others wrote into the session, for people who watch rather than converse.
    `commands`: who reads this may type slash commands right there. `work` tells what a harness
    does: tool calls, plans, permissions. `typed`: who reads this types answers right there.
    """

    def __init__(
        self,
        *,
        live: bool = False,
        thorough: bool = False,
        commands: bool = False,
        work: bool = False,
        typed: bool = False,
    ) -> None:
        self._live = live
        self._thorough = thorough
        self._commands = commands
        self._work = work or thorough
        # What a harness says between its tool calls is said to whoever follows it.
        self._says_all = work
        self._typed = typed
        self._harness = HarnessTeller()
        self._shown: dict[str, str] = {}
        self._complete: set[str] = set()
        self._open: str | None = None
        self._labels: dict[str, str] = {}
        self._places: dict[str, str] = {}

    def tell(self, item: Item) -> Iterator[Utterance]:
        """Yield what is to be shown for the next item of the stream."""
        kind = item.WhichOneof("message")
        if kind == "delta":
            yield from self._piece(item.delta)
        elif kind == "event":
            yield from self._event(item.event)
        elif kind == "lane_position":
            yield from self._position(item.lane_position)
        elif isinstance(item, gateway_pb.ChatResponse):
            if kind == "accepted":
                yield from self._accepted(item.accepted)
            elif kind == "ended":
                yield from self._ended(item.ended)

    def _line(self, text: str, voice: Voice = Voice.NEWS) -> Iterator[Utterance]:
        yield from self._close()
        yield Utterance(voice, text)

    def _close(self) -> Iterator[Utterance]:
        if self._open is not None:
            self._open = None
            yield Utterance(Voice.BREAK)

    def _piece(self, delta: event_pb.MessageDelta) -> Iterator[Utterance]:
        if not self._live or delta.message_id in self._complete:
            return
        before = self._shown.get(delta.message_id, "")
        now = before[: delta.offset] + delta.text
        if self._open == delta.message_id and before.startswith(now):
            return  # a repeated piece
        self._shown[delta.message_id] = now
        if self._open != delta.message_id:
            yield from self._close()
            self._open = delta.message_id
            yield Utterance(Voice.PIECE, now)
        elif now.startswith(before):
            yield Utterance(Voice.PIECE, now[len(before) :])
        else:
            # A new attempt says something else. What was shown cannot be taken back.
            yield Utterance(Voice.BREAK)
            yield Utterance(Voice.PIECE, now)

    def _whole(self, message_id: str, text: str) -> Iterator[Utterance]:
        if message_id in self._complete or not text.strip():
            return
        self._complete.add(message_id)
        shown = self._shown.pop(message_id, "")
        if self._open == message_id and text.startswith(shown):
            if len(text) > len(shown):
                yield Utterance(Voice.PIECE, text[len(shown) :])
            yield from self._close()
        elif shown == text:
            yield from self._close()  # all of it is there, with news below it
        else:
            yield from self._close()
            yield Utterance(Voice.MESSAGE, text)

    def _accepted(self, accepted: scheduler_pb.AcceptedRun) -> Iterator[Utterance]:
        self._labels[accepted.run.run_id] = "this run"
        if words := fate(accepted.outcome, accepted.estimate):
            yield from self._line(words)
        yield from self._place_of(accepted.run.run_id, accepted.estimate)

    def _position(self, moved: event_pb.LanePositionUpdated) -> Iterator[Utterance]:
        yield from self._place_of(moved.run_id, moved.estimate)

    def _place_of(self, run_id: str, estimate: lane_pb.QueueEstimate) -> Iterator[Utterance]:
        where = place(estimate)
        if where and where != self._places.get(run_id):
            self._places[run_id] = where
            yield from self._line(where)

    def _ended(self, run: run_pb.Run) -> Iterator[Utterance]:
        if not run.run_id:  # a command: its lines are lines, not a paragraph
            yield from self._close()
            yield Utterance(Voice.PIECE, text_of(run.result.reply))
            yield Utterance(Voice.BREAK)
            return
        if run.HasField("result") and run.result.HasField("reply"):
            yield from self._whole(run.result.reply.message_id, text_of(run.result.reply))
        yield from self._close()
        if run.state != run_pb.RUN_STATE_SUCCEEDED:
            why = run.error.message or run.cancel_reason
            yield from self._line(
                f"the run {_ended_word(run.state)}" + (f": {why}" if why else ""), Voice.BAD
            )
            if run.HasField("error"):
                # What a program wrote before it failed, where the error is about one.
                for line in last_lines(from_proto(run.error).metadata.get("lastWords", "")):
                    yield from self._line(f"› {line}")

    def _event(self, event: event_pb.Event) -> Iterator[Utterance]:
        kind = event.WhichOneof("payload")
        if kind == "message_completed":
            yield from self._message(event.message_completed)
        elif kind == "child_spawned":
            child = event.child_spawned
            name = child.label or child.child_run_id
            self._labels[child.child_run_id] = name
            yield from self._line(f"started {name}")
        elif kind == "child_announced":
            yield from self.announce(event.child_announced.announcement)
        elif kind == "note_added":
            if event.note_added.visible or self._thorough:
                bad = event.note_added.level == event_pb.NOTE_LEVEL_WARNING
                yield from self._line(event.note_added.text, Voice.BAD if bad else Voice.NEWS)
        elif kind == "question_asked":
            yield from self._question(event.question_asked.question)
        elif kind == "question_closed":
            yield from self._answer(event.question_closed)
        elif kind == "steer_missed":
            yield from self._line("the message was not taken by the running turn; it waits in line")
        elif kind == "steer_accepted":
            yield from self._line("the running turn took the message")
        elif kind == "guard_intervened":
            yield from self._line(_guard_line(event.guard_intervened))
        elif kind == "harness_updated" and self._work:
            told = self._harness.tell(event.harness_updated, thoughts=self._thorough)
            if told is not None:
                yield from self._line(told[0], Voice.NEWS if told[1] else Voice.BAD)
        elif kind == "permission_decided":
            yield from self._decided(event.permission_decided)
        elif self._thorough:
            yield from self._detail(event, kind)

    def _message(self, completed: event_pb.MessageCompleted) -> Iterator[Utterance]:
        message, text = completed.message, text_of(completed.message)
        if completed.kind in (event_pb.MESSAGE_KIND_REPLY, event_pb.MESSAGE_KIND_INTERIM):
            yield from self._whole(message.message_id, text)
        elif self._says_all and completed.kind == event_pb.MESSAGE_KIND_INTERNAL:
            # Its pieces came as those of the message that was to be the reply.
            if any(shown.endswith(text) for shown in self._shown.values()):
                yield from self._close()
            else:
                yield from self._whole(message.message_id, text)
        elif self._thorough:
            who = "message" if completed.kind == event_pb.MESSAGE_KIND_INPUT else "thinks"
            yield from self._line(f"{who}: {shorten(text, 400)}")

    def announce(self, told: announcement_pb.Announcement) -> Iterator[Utterance]:
        """Yield the line about the end of a child run."""
        child = told.result
        name = child.label or self._labels.get(child.run_id) or child.run_id
        figures = []
        if child.HasField("duration"):
            figures.append(span(seconds(child.duration)))
        if child.HasField("usage"):
            figures.append(tokens(child.usage))
        if told.live_siblings:
            figures.append(f"{told.live_siblings} still at work")
        line = f"{name} {state_word(child.status)}"
        if figures:
            line += f" ({', '.join(figures)})"
        good = child.status == run_pb.RUN_STATE_SUCCEEDED
        words = child.text if good else child.error.message or child.text
        if words:
            # A failure often ends with what to do about it; that must not be cut off.
            line += f": {shorten(words, 100 if good else 300)}"
        yield from self._line(line, Voice.GOOD if good else Voice.BAD)

    def _question(self, question: question_pb.Question) -> Iterator[Utterance]:
        time = time_limit(seconds(question.timeout))
        yield from self._line(f"question {question.number} ({time} to answer): {question.title}")
        for line in asked_for(question):
            yield from self._line(f"  {line}")
        yield from self._line(
            f"answer: {ways(question, commands=self._commands, typed=self._typed)}"
        )

    def _answer(self, closed: event_pb.QuestionClosed) -> Iterator[Utterance]:
        which = f"question {closed.number} ({shorten(closed.title, 60)})"
        taken = closed.option_name or "rejected"
        if closed.state == question_pb.QUESTION_STATE_ANSWERED:
            yield from self._line(f"{which} answered by {closed.answer.responder}: {taken}")
        elif closed.state == question_pb.QUESTION_STATE_EXPIRED:
            yield from self._line(f"{which}: nobody answered in time: {taken}", Voice.BAD)
        elif self._thorough:
            yield from self._line(f"{which} needs no answer any more")

    def _decided(self, decided: event_pb.PermissionDecided) -> Iterator[Utterance]:
        # What people answered is told as their answer.
        if self._work or not (decided.allowed or decided.rule in _TOLD_AS_ANSWER):
            voice = Voice.NEWS if decided.allowed else Voice.BAD
            yield from self._line(decided_line(decided), voice)

    def _detail(self, event: event_pb.Event, kind: str | None) -> Iterator[Utterance]:
        who = self._labels.get(event.run_id, event.run_id)
        if kind == "run_state_changed":
            changed = event.run_state_changed
            voice = Voice.BAD if changed.HasField("error") else Voice.NEWS
            words = changed.error.message or changed.cause
            yield from self._line(
                f"{who} {state_word(changed.state)}" + (f": {words}" if words else ""), voice
            )
        elif kind == "tool_call_started":
            yield from self._line(f"{who} calls {event.tool_call_started.tool_name}")
        elif kind == "tool_call_ended" and event.tool_call_ended.HasField("error"):
            yield from self._line(
                f"{who}: a tool failed: {event.tool_call_ended.error.message}", Voice.BAD
            )


_TOLD_AS_ANSWER = frozenset({"asked", "expired", "cancelled"})


def _ended_word(state: run_pb.RunState.ValueType) -> str:
    word = state_word(state)
    return f"was {word}" if state == run_pb.RUN_STATE_CANCELLED else word


_GUARD_LINES = {
    event_pb.GUARD_STEP_PARSE_CALL: "made the call that the model wrote as text",
    event_pb.GUARD_STEP_INSIST: "told the model what is true and asked again",
    event_pb.GUARD_STEP_FORCE_TOOL: "made the model call the tool",
    event_pb.GUARD_STEP_FALL_BACK_MODEL: "asked the stronger model",
    event_pb.GUARD_STEP_DELIVER_WITH_NOTE: "delivered the reply with a note",
}


def _guard_line(did: event_pb.GuardIntervened) -> str:
    return "delegation guard: " + _GUARD_LINES.get(did.step, "stepped in")

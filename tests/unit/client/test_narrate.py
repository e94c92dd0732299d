from __future__ import annotations

from typing import Any

from conveyor.common.v1 import content_pb2, question_pb2, usage_pb2
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import announcement_pb2, lane_pb2, run_pb2, scheduler_service_pb2
from conveyor_client.cli.asking import choose_option, choose_question, options_line
from conveyor_client.cli.narrate import Narrator, Utterance, Voice
from conveyor_client.cli.places import fate
from svckit.errors import AcpTurnFailed
from svckit.grpc.status import to_proto


def said(narrator: Narrator, *items: gateway_pb.ChatResponse) -> list[Utterance]:
    return [utterance for item in items for utterance in narrator.tell(item)]


def delta(text: str, offset: int, message_id: str = "m") -> gateway_pb.ChatResponse:
    piece = event_pb2.MessageDelta(message_id=message_id, text=text, offset=offset)
    return gateway_pb.ChatResponse(delta=piece)


def message(text: str, message_id: str = "m") -> content_pb2.Message:
    return content_pb2.Message(message_id=message_id, parts=[content_pb2.ContentPart(text=text)])


def reply(text: str, message_id: str = "m") -> gateway_pb.ChatResponse:
    completed = event_pb2.MessageCompleted(
        message=message(text, message_id), kind=event_pb2.MESSAGE_KIND_REPLY
    )
    return gateway_pb.ChatResponse(event=event_pb2.Event(message_completed=completed))


def ended(text: str = "", **fields: object) -> gateway_pb.ChatResponse:
    run = run_pb2.Run(**{"run_id": "R", "state": run_pb2.RUN_STATE_SUCCEEDED, **fields})
    if text:
        run.result.reply.CopyFrom(message(text))
    return gateway_pb.ChatResponse(ended=run)


def pieces(text: str) -> Utterance:
    return Utterance(Voice.PIECE, text)


BREAK = Utterance(Voice.BREAK)


def test_pieces_then_the_whole_show_the_text_once() -> None:
    items = [delta("Hel", 0), delta("lo", 3), reply("Hello!"), ended("Hello!")]
    assert said(Narrator(live=True), *items) == [
        pieces("Hel"),
        pieces("lo"),
        pieces("!"),
        BREAK,
    ]


def test_a_repeated_piece_is_not_shown_twice() -> None:
    items = [delta("Hello", 0), delta("Hel", 0), delta("lo", 3), delta(" you", 5)]
    assert said(Narrator(live=True), *items) == [pieces("Hello"), pieces(" you")]


def test_a_late_watcher_gets_the_message_so_far_as_one_piece() -> None:
    items = [delta("Hel", 0), delta("Hello yo", 0), delta("u", 8)]
    assert said(Narrator(live=True), *items) == [pieces("Hel"), pieces("lo yo"), pieces("u")]


def test_a_new_attempt_begins_a_new_line() -> None:
    assert said(Narrator(live=True), delta("Hello", 0), delta("Good day", 0)) == [
        pieces("Hello"),
        BREAK,
        pieces("Good day"),
    ]


def test_without_live_pieces_only_the_whole_message_is_told() -> None:
    items = [delta("Hel", 0), reply("Hello"), ended("Hello")]
    assert said(Narrator(), *items) == [Utterance(Voice.MESSAGE, "Hello")]


def test_the_reply_is_told_from_the_end_when_its_event_was_missed() -> None:
    assert said(Narrator(), ended("Hello")) == [Utterance(Voice.MESSAGE, "Hello")]


def test_an_announcement_interrupts_pieces_with_a_line_of_its_own() -> None:
    announcement = announcement_pb2.Announcement(
        result=announcement_pb2.ChildResult(
            label="research",
            status=run_pb2.RUN_STATE_SUCCEEDED,
            text="Prices\nrise",
            usage=usage_pb2.Usage(input_tokens=10, output_tokens=5),
        ),
        live_siblings=2,
    )
    announcement.result.duration.FromMilliseconds(1250)
    told = gateway_pb.ChatResponse(
        event=event_pb2.Event(child_announced=event_pb2.ChildAnnounced(announcement=announcement))
    )
    assert said(Narrator(live=True), delta("I ", 0), told) == [
        pieces("I "),
        BREAK,
        Utterance(
            Voice.GOOD,
            "research succeeded (1.2 s, 15 tokens, 2 still at work): Prices rise",
        ),
    ]


def test_a_failed_child_is_told_with_its_reason() -> None:
    result = announcement_pb2.ChildResult(run_id="r1", status=run_pb2.RUN_STATE_FAILED)
    result.error.message = "the model refused"
    told = list(Narrator().announce(announcement_pb2.Announcement(result=result)))
    assert told == [Utterance(Voice.BAD, "r1 failed: the model refused")]


def test_the_answer_to_a_command_keeps_its_lines() -> None:
    item = ended("main: paused\nacp: paused", run_id="")
    assert said(Narrator(), item) == [pieces("main: paused\nacp: paused"), BREAK]


def test_a_failed_run_is_told_with_its_reason() -> None:
    item = ended(state=run_pb2.RUN_STATE_FAILED)
    item.ended.error.message = "no attempt is left"
    assert said(Narrator(), item) == [
        Utterance(Voice.BAD, "the run failed: no attempt is left"),
    ]


def test_what_a_harness_wrote_last_is_told_with_the_failure() -> None:
    item = ended(state=run_pb2.RUN_STATE_FAILED)
    words = {"cause": "crashed", "lastWords": "one\ntwo\n\nthree\nfour"}
    item.ended.error.CopyFrom(to_proto(AcpTurnFailed("it was stopped", metadata=words)))
    assert said(Narrator(), item) == [
        Utterance(Voice.BAD, "the run failed: it was stopped"),
        *(Utterance(Voice.NEWS, f"› {line}") for line in ("two", "three", "four")),
    ]


def test_a_cancelled_run_names_who_wished_it() -> None:
    item = ended(state=run_pb2.RUN_STATE_CANCELLED, cancel_reason="changed my mind")
    assert said(Narrator(), item) == [
        Utterance(Voice.BAD, "the run was cancelled: changed my mind"),
    ]


def test_a_waiting_message_says_its_place_once_and_why() -> None:
    estimate = lane_pb2.QueueEstimate(position=3)
    estimate.session_lane_wait.children.SetInParent()
    accepted = gateway_pb.ChatResponse(
        accepted=scheduler_service_pb2.AcceptedRun(estimate=estimate)
    )
    moved = gateway_pb.ChatResponse(
        lane_position=event_pb2.LanePositionUpdated(estimate=lane_pb2.QueueEstimate(position=2))
    )
    assert said(Narrator(), accepted, moved, moved) == [
        Utterance(Voice.NEWS, "3rd in line, working on your previous message"),
        Utterance(Voice.NEWS, "2nd in line"),
    ]


def test_details_are_told_only_to_those_who_watch() -> None:
    changed = event_pb2.RunStateChanged(state=run_pb2.RUN_STATE_RUNNING)
    item = gateway_pb.WatchSessionResponse(
        event=event_pb2.Event(run_id="r1", run_state_changed=changed)
    )
    assert list(Narrator().tell(item)) == []
    assert list(Narrator(thorough=True).tell(item)) == [Utterance(Voice.NEWS, "r1 running")]


def test_a_list_of_questions_does_not_explain_words_that_speak_for_themselves() -> None:
    question = question_pb2.Question()
    question.options.add(option_id="allow-always", name="Allow for the rest of this conversation")
    question.options.add(option_id="deny", name="Deny")
    assert options_line(question) == "allow-always, deny"
    question.options.add(option_id="2", name="Only this file")
    assert options_line(question) == "allow-always, deny, 2 (Only this file)"


def test_questions_say_how_to_answer_them() -> None:
    question = question_pb2.Question(
        question_id="R/1.1.0",
        number=2,
        title="delete it",
        options=[
            question_pb2.QuestionOption(
                option_id=option_id, name=name, kind=question_pb2.QuestionOptionKind.ValueType(kind)
            )
            for option_id, name, kind in (("yes", "Allow once", 1), ("no", "Deny", 3))
        ],
    )
    question.timeout.FromSeconds(300)
    asked = event_pb2.Event(question_asked=event_pb2.QuestionAsked(question=question))

    def closed(state: str, **more: Any) -> event_pb2.Event:
        return event_pb2.Event(
            question_closed=event_pb2.QuestionClosed(
                state=question_pb2.QuestionState.Value(f"QUESTION_STATE_{state}"),
                title="delete it",
                number=2,
                **more,
            )
        )

    def told(event: event_pb2.Event, **how: bool) -> list[str]:
        shown = gateway_pb.ChatResponse(event=event)
        return [said.text for said in Narrator(**how).tell(shown)]

    assert told(asked) == [
        "question 2 (5 min to answer): delete it",
        "answer: conveyor questions answer R/1.1.0 yes|no",
    ]
    assert told(asked, commands=True)[1] == "answer: /approve 2 or /deny 2"
    answer = question_pb2.Answer(responder="ann")
    [line] = told(closed("ANSWERED", answer=answer, option_name="Allow once"))
    assert line == "question 2 (delete it) answered by ann: Allow once"
    [line] = told(closed("EXPIRED"))
    assert line == "question 2 (delete it): nobody answered in time: rejected"
    assert told(closed("CANCELLED")) == []
    [line] = told(closed("CANCELLED"), thorough=True)
    assert line == "question 2 (delete it) needs no answer any more"


def test_which_question_is_meant() -> None:
    def question(question_id: str, number: int, session: str) -> question_pb2.Question:
        return question_pb2.Question(
            question_id=question_id,
            number=number,
            root_session_key=session,
            options=[question_pb2.QuestionOption(option_id="yes", name="Allow once")],
        )

    asked = [question("R/1", 1, "a"), question("S/1", 1, "b"), question("S/2", 2, "b")]
    assert choose_question(asked, "S/1") == asked[1]
    assert choose_question(asked, "2") == asked[2]
    assert choose_question(asked, "1") == (
        "2 questions have the number 1; add --session, one of a, b"
    )
    assert choose_question(asked, "7") == "no open question is '7'; `conveyor questions` lists them"
    assert [choose_option(asked[0], typed) for typed in ("yes", "allow ONCE", "no")] == [
        "yes",
        "yes",
        "no",
    ]


def test_who_steers_into_a_wait_for_an_answer_is_told() -> None:
    estimate = lane_pb2.QueueEstimate()
    estimate.session_lane_wait.approval.question_ids.append("R/1")
    steered = lane_pb2.ENQUEUE_OUTCOME_STEERED
    assert fate(steered, estimate) == (
        "kept for the work that goes on once the open question is answered"
    )
    assert fate(steered) == "handed to the work that is going on"

"""Origins, deliveries, session lanes, the query, and what goes over the wire."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2

from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.config import token_holders
from gateway_svc.domain.deliveries import AnnounceStyle, DeliveryKind, speaker, told
from gateway_svc.domain.origin import origin_rules
from gateway_svc.domain.redaction import clear_run
from gateway_svc.domain.sessions import LaneUse, lane_use
from gateway_svc.http.bodies import from_query, truth
from gateway_svc.http.wire import error_body, to_dict, to_message
from svckit.errors import InvalidField, ScopeMissing, invalid_field
from svckit.settings import Settings


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("[::1]:8080", True),
        ("192.168.1.5", True),
        ("conveyor.example", True),
        ("gateway.internal:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        (None, False),
        ("[::1", True),
        ("@localhost", False),
    ],
)
def test_which_hosts_are_us(host: str | None, allowed: bool) -> None:
    rules = origin_rules("gateway.internal:8080", ["https://conveyor.example"])
    assert rules.allows_host(host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:8080", True),
        ("https://localhost:8080", True),
        ("https://conveyor.example", True),
        ("http://conveyor.example", False),
        ("http://localhost:9999", False),
        ("http://localhost:8080.evil.example", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("file://localhost:8080", False),
    ],
)
def test_which_origins_may_use_us(origin: str | None, allowed: bool) -> None:
    rules = origin_rules("127.0.0.1:8080", ["https://conveyor.example/"])
    assert rules.allows_origin(origin, "localhost:8080") is allowed


def event(**payload: Any) -> event_pb2.Event:
    return event_pb2.Event(run_id="r", flow_id="r", **payload)


def said(kind: int, text: str = "hi") -> event_pb2.Event:
    message = content_pb2.Message(parts=[content_pb2.ContentPart(text=text)])
    completed = event_pb2.MessageCompleted(message=message)
    completed.kind = event_pb2.MessageKind.ValueType(kind)
    return event(message_completed=completed)


def ended(state: run_pb2.RunState.ValueType, flow_id: str = "r") -> event_pb2.Event:
    changed = event_pb2.RunStateChanged(state=state)
    return event_pb2.Event(run_id="r", flow_id=flow_id, run_state_changed=changed)


def test_what_a_customer_is_told() -> None:
    style = AnnounceStyle.OFF
    assert told(said(event_pb2.MESSAGE_KIND_REPLY), style).kind is DeliveryKind.REPLY  # type: ignore[union-attr]
    assert told(said(event_pb2.MESSAGE_KIND_INTERIM), style).kind is DeliveryKind.INTERIM  # type: ignore[union-attr]
    for kind in (event_pb2.MESSAGE_KIND_INPUT, event_pb2.MESSAGE_KIND_INTERNAL):
        assert told(said(kind), style) is None
    assert told(said(event_pb2.MESSAGE_KIND_REPLY, ""), style) is None
    assert told(ended(run_pb2.RUN_STATE_FAILED), style) is not None
    assert told(ended(run_pb2.RUN_STATE_EXPIRED), style) is not None
    assert told(ended(run_pb2.RUN_STATE_CANCELLED), style) is None
    assert told(ended(run_pb2.RUN_STATE_SUCCEEDED), style) is None
    assert told(ended(run_pb2.RUN_STATE_FAILED, "other"), style) is None
    note = event_pb2.NoteAdded(text="a fallback model answers", visible=True)
    assert told(event(note_added=note), style).text == "a fallback model answers"  # type: ignore[union-attr]
    note.visible = False
    assert told(event(note_added=note), style) is None


def test_what_a_customer_is_told_of_questions() -> None:
    style = AnnounceStyle.OFF
    kinds = question_pb2.QuestionOptionKind
    question = question_pb2.Question(
        number=2,
        title="run_tests: make test",
        default_option_id="c",
        options=[
            question_pb2.QuestionOption(option_id=option_id, name=name, kind=kind)
            for option_id, name, kind in (
                ("a", "Allow once", kinds.Value("QUESTION_OPTION_KIND_ALLOW_ONCE")),
                ("b", "Always allow", kinds.Value("QUESTION_OPTION_KIND_ALLOW_ALWAYS")),
                ("c", "Deny", kinds.Value("QUESTION_OPTION_KIND_REJECT_ONCE")),
            )
        ],
    )
    question.timeout.FromSeconds(300)
    asked = event(question_asked=event_pb2.QuestionAsked(question=question))
    asked.run_id, asked.flow_id = "child", "root"
    found = told(asked, style)
    assert found is not None
    assert found.kind is DeliveryKind.QUESTION
    assert found.text.splitlines() == [
        "Question 2: run_tests: make test",
        "Allow once · Always allow · Deny",
        "Answer within 5 min: /approve 2, /approve 2 always or /deny 2",
        "No answer in time means: Deny",
    ]
    assert speaker(asked) == "root"
    closed = event_pb2.QuestionClosed(title="make test", number=2, option_name="Deny")
    for state in (2, 4):
        closed.state = question_pb2.QuestionState.ValueType(state)
        assert told(event(question_closed=closed), style) is None
    closed.state = question_pb2.QUESTION_STATE_EXPIRED
    found = told(event(question_closed=closed), style)
    assert found is not None
    assert found.text == "Question 2 (make test): nobody answered in time. Taken: Deny"
    del question.options[:2]
    question.default_option_id = ""
    question.timeout.FromSeconds(90)
    found = told(asked.__class__(question_asked=event_pb2.QuestionAsked(question=question)), style)
    assert found is not None
    assert found.text.splitlines()[2:] == [
        "Answer within 90 s: /deny 2",
        "No answer in time means: rejected",
    ]


def run(run_id: str, state: run_pb2.RunState.ValueType, **more: Any) -> run_pb2.Run:
    spec = run_pb2.RunSpec(session_key="s")
    return run_pb2.Run(run_id=run_id, spec=spec, state=state, **more)


@pytest.mark.parametrize(
    ("runs", "use"),
    [
        ([], None),
        ([run("1", run_pb2.RUN_STATE_RUNNING)], LaneUse("1", 0)),
        ([run("1", run_pb2.RUN_STATE_QUEUED)], LaneUse("", 1)),
        (
            [run("2", run_pb2.RUN_STATE_QUEUED), run("1", run_pb2.RUN_STATE_RUNNING)],
            LaneUse("1", 1),
        ),
        ([run("1", run_pb2.RUN_STATE_SUSPENDED)], LaneUse("", 0)),
        (
            [
                run(
                    "1",
                    run_pb2.RUN_STATE_SUSPENDED,
                    suspension=run_pb2.Suspension(holds_session_lane=True),
                )
            ],
            LaneUse("1", 0),
        ),
        ([run("1", run_pb2.RUN_STATE_QUEUED, turn=2)], LaneUse("1", 0)),
        ([run("1", run_pb2.RUN_STATE_CANCELLING)], LaneUse("", 0)),
        ([run("1", run_pb2.RUN_STATE_CANCELLING, worker="w")], LaneUse("1", 0)),
    ],
)
def test_who_holds_a_session_lane(runs: list[run_pb2.Run], use: LaneUse | None) -> None:
    assert lane_use(runs).get("s") == use


def test_the_query_fills_the_request() -> None:
    pairs = [
        ("states", "running"),
        ("states", "RUN_STATE_QUEUED"),
        ("labels", "a=b=c"),
        ("page_size", "7"),
        ("customer_key", "x"),
    ]
    found = from_query(pairs, ss.ListRunsRequest())
    assert list(found.filter.states) == [run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_QUEUED]
    assert dict(found.filter.labels) == {"a": "b=c"}
    assert (found.page_size, found.filter.customer_key) == (7, "x")
    flows = from_query(
        [("with_children", ""), ("after_time", "2026-01-01T00:00:00Z")], fs.ListFlowsRequest()
    )
    assert flows.filter.with_children
    assert flows.filter.after_time.seconds == 1767225600


@pytest.mark.parametrize(
    "pair",
    [("filter", "x"), ("what", "x"), ("states", "odd"), ("labels", "x"), ("page_size", "1e9x")],
)
def test_a_bad_query_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidField):
        from_query([pair], ss.ListRunsRequest())


def test_yes_and_no() -> None:
    assert [truth("x", value) for value in (None, "0", "1", "true", "no", "")] == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]


def test_an_unknown_any_is_left_out() -> None:
    known = run("1", run_pb2.RUN_STATE_RUNNING)
    known.spec.task.CopyFrom(any_pb2.Any(type_url="type.googleapis.com/else.Where", value=b"x"))
    known.error.message = "broken"
    known.error.details.add(type_url="type.googleapis.com/else.Where", value=b"x")
    found = to_dict(gw.SteerRunResponse(run=known))
    assert found == {
        "run": {
            "run_id": "1",
            "spec": {"session_key": "s"},
            "state": "RUN_STATE_RUNNING",
            "error": {"message": "broken"},
        }
    }


def test_errors_name_their_fields() -> None:
    body = error_body(invalid_field("a.b", "must be short"))["error"]
    assert body["reason"] == "INVALID_FIELD"
    assert body["fields"] == [{"field": "a.b", "problem": "must be short"}]


def test_json_that_does_not_fit_names_the_field() -> None:
    with pytest.raises(InvalidField) as refused:
        to_message({"page_size": "many"}, ss.ListRunsRequest())
    assert refused.value.metadata["field"] == "page_size"


def test_scopes_include_each_other() -> None:
    reader = Principal("ann", Scope.READ, customer_key="acme")
    reader.require(Scope.READ)
    with pytest.raises(ScopeMissing) as refused:
        reader.require(Scope.SEND)
    assert refused.value.metadata == {"scope": "send"}
    assert reader.may_see("acme")
    assert not reader.may_see("other")
    assert not Principal("nobody", Scope.CONTROL).may_see("")
    assert Principal("root", Scope.ADMIN).may_see("other")


def test_clients_see_less_of_a_run() -> None:
    def whole() -> run_pb2.Run:
        found = run("1", run_pb2.RUN_STATE_RUNNING, worker="w")
        found.spec.task.type_url = "x"
        found.spec.reply_route.address = "y"
        found.result.details.type_url = "x"
        found.inputs.add(body_hash=b"h")
        return found

    admin = clear_run(whole(), for_admin=True)
    assert admin.worker == "w"
    assert admin.inputs[0].body_hash == b""
    client = clear_run(whole(), for_admin=False)
    assert not client.worker
    assert not client.spec.HasField("task")
    assert not client.spec.HasField("reply_route")
    assert not client.result.HasField("details")


@pytest.mark.parametrize("published", ["127.0.0.1", "localhost", "::1"])
def test_a_container_published_on_loopback_needs_no_token(published: str) -> None:
    gateway = {"http": "0.0.0.0:8080", "grpc": "0.0.0.0:50050", "published": published}
    assert token_holders(Settings.model_validate({"gateway": gateway})) == {}

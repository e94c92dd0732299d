"""What of an explanation a caller gets to see."""

from __future__ import annotations

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import explain_pb2, run_pb2
from gateway_svc.domain.redaction import clear_event, clear_explanation, clear_run


def explanation() -> explain_pb2.RunExplanation:
    def ref(customer: str) -> explain_pb2.RunRef:
        return explain_pb2.RunRef(
            run_id=f"run of {customer}",
            session_key=f"session of {customer}",
            customer_key=customer,
            label="secret plan",
            state=run_pb2.RUN_STATE_RUNNING,
        )

    told = explain_pb2.RunExplanation()
    told.run.spec.reply_route.address = "address"
    told.run.worker = "agent-0"
    told.run.spec.preferred_worker = "agent-0"
    told.run.suspension.lease_worker = "agent-0"
    busy = told.reasons.add(text="All 2 slots of lane main are taken.").lane_busy
    busy.holders.extend([ref("me"), ref("other")])
    told.reasons.add().executing.worker = "agent-0"
    told.reasons.add().no_worker.worker = "agent-0"
    told.reasons[-1].text = "A slot is free; it goes on at worker agent-0, which keeps its process."
    told.reasons.add().behind_run.run.CopyFrom(ref("other"))
    told.reasons.add().waiting_for_children.live.extend([ref("other")])
    told.reasons.add().stopping.unconfirmed.extend([ref("other")])
    return told


def test_other_customers_runs_are_not_named() -> None:
    told = clear_explanation(explanation(), for_admin=False, may_see=lambda key: key == "me")
    mine, others = told.reasons[0].lane_busy.holders
    assert (mine.run_id, mine.label) == ("run of me", "secret plan")
    state_only = explain_pb2.RunRef(state=run_pb2.RUN_STATE_RUNNING)
    assert others == state_only
    assert told.reasons[3].behind_run.run == state_only
    assert list(told.reasons[4].waiting_for_children.live) == [state_only]
    assert list(told.reasons[5].stopping.unconfirmed) == [state_only]
    goes_on = "A slot is free; it goes on at a worker, which keeps its process."
    assert told.reasons[2].text == goes_on
    text = str(told)
    for secret in ("other", "agent-0", "address"):
        assert secret not in text


def test_who_may_see_everything_does() -> None:
    before = explanation()
    told = clear_explanation(explanation(), for_admin=True, may_see=lambda key: True)
    assert told == before


def test_events_and_runs_name_no_worker() -> None:
    event = event_pb2.Event()
    event.run_state_changed.suspension.lease_worker = "acp-0"
    event.run_state_changed.suspension.holds_session_lane = True
    assert "acp-0" not in str(clear_event(event))
    assert event.run_state_changed.suspension.holds_session_lane
    run = run_pb2.Run(worker="acp-0")
    run.spec.preferred_worker = run.suspension.lease_worker = "acp-0"
    assert "acp-0" in str(clear_run(run, for_admin=True))
    assert "acp-0" not in str(clear_run(run, for_admin=False))

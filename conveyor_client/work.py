"""One run among everything that happens in its session."""

from __future__ import annotations

from conveyor.events.v1 import event_pb2 as event_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb

_TERMINAL = frozenset(
    {
        run_pb.RUN_STATE_SUCCEEDED,
        run_pb.RUN_STATE_FAILED,
        run_pb.RUN_STATE_CANCELLED,
        run_pb.RUN_STATE_EXPIRED,
    }
)


class Work:
    """Picks what concerns a run out of a watch of its session, and notices its end.

    A message that the run at work was offered and did not take moves on to a run of its own.
    """

    def __init__(self, accepted: scheduler_pb.AcceptedRun, request_id: str) -> None:
        self.run_id = accepted.run.run_id
        self.ended = False
        self._request_id = request_id
        self._was_over = accepted.run.state in _TERMINAL

    def take(self, item: gateway_pb.WatchSessionResponse) -> gateway_pb.ChatResponse | None:
        """Return what an item says about the run, `None` when it says nothing about it."""
        kind = item.WhichOneof("message")
        token = item.resume_token
        if kind == "event":
            return self._event(item.event, token)
        if kind == "delta" and item.delta.run_id == self.run_id:
            return gateway_pb.ChatResponse(delta=item.delta, resume_token=token)
        if kind == "lane_position" and item.lane_position.run_id == self.run_id:
            return gateway_pb.ChatResponse(lane_position=item.lane_position, resume_token=token)
        if kind == "progress":
            # Over before it was watched, and everything that is kept of it was sent.
            self.ended = self.ended or (item.progress.live and self._was_over)
            return gateway_pb.ChatResponse(progress=item.progress, resume_token=token)
        return None

    def _event(self, event: event_pb.Event, token: str) -> gateway_pb.ChatResponse | None:
        missed = event.steer_missed
        moved = missed.request_id == self._request_id and missed.fallback_run_id
        if moved:
            self.run_id, self._was_over = moved, False
        elif event.run_id != self.run_id:
            return None
        elif event.run_state_changed.state in _TERMINAL:
            self.ended = True
        return gateway_pb.ChatResponse(event=event, resume_token=token)

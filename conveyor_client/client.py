"""The typed client of `GatewayService`: its streams, and the life of a connection."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType

from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.agent.v1 import probe_pb2 as probe_pb
from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.calls import Calls
from conveyor_client.connection import Connection, Patience
from conveyor_client.credentials import Tls
from conveyor_client.messages import as_inbound
from conveyor_client.work import Work
from svckit.ids import new_ulid

DEFAULT_ADDRESS = "127.0.0.1:50050"
"""Where a gateway listens unless it is configured otherwise."""


class ConveyorClient(Calls):
    """A connection to a suite. Use it as a context manager, within one event loop.

    `address` is the gateway's `host:port`; `token` is sent as bearer token when given, in plain
    text unless `tls` says otherwise. Calls that may be repeated are repeated while the suite does
    not answer, within `patience`; a standby's leader is followed. Every method may raise
    `ServiceError` with the reason of the server, or `Unreachable`. Raises `OSError` for a file of
    `tls` that cannot be read.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        patience: Patience | None = None,
    ) -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        super().__init__(
            Connection(address, metadata=metadata, patience=patience or Patience(), tls=tls)
        )

    async def __aenter__(self) -> ConveyorClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is under way and close the connection."""
        await self._to.close()

    async def chat(
        self,
        message: str | content_pb.Message,
        *,
        session_key: str = "",
        agent_id: str = "",
        customer_key: str = "",
        queue_mode: lane_pb.QueueMode.ValueType = lane_pb.QUEUE_MODE_UNSPECIFIED,
        budget: run_pb.Budget | None = None,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        include_descendants: bool = False,
        request_id: str | None = None,
        resume_token: str = "",
    ) -> AsyncGenerator[gateway_pb.ChatResponse, None]:
        """Queue a message and yield what happens until the run and all it spawned are done.

        First `accepted`, then events, each once and in order per session, with live pieces between
        them, last `ended` with the terminal run. A broken stream is resumed unseen: nothing is lost
        and nothing is sent twice. Leaving early does not stop the run; leave with `aclosing`.

        To go on in another process, pass the `request_id` and the last `resume_token`.
        """
        inbound = as_inbound(
            message, session_key, agent_id, customer_key, queue_mode, budget, priority, labels
        )
        key = request_id or new_ulid()

        def request(token: str) -> gateway_pb.ChatRequest:
            return gateway_pb.ChatRequest(
                inbound=inbound,
                request_id=key,
                resume_token=token,
                include_descendants=include_descendants,
            )

        stream = self._to.stream(
            lambda stub: stub.Chat,
            request,
            lambda item: item.resume_token,
            resume_token=resume_token,
        )
        seen = _Seen()
        accepted = False
        async with aclosing(stream):
            async for item in stream:
                kind = item.WhichOneof("message")
                if kind == "accepted":
                    if accepted:
                        continue  # of a resumed stream
                    accepted = True
                elif kind == "event" and not seen.first(
                    item.event.session_key, item.event.sequence
                ):
                    continue
                yield item
                if kind == "ended":
                    return

    async def watch_session(
        self,
        session_key: str,
        *,
        resume_token: str = "",
        from_now: bool = False,
        include_descendants: bool = False,
        payloads: Sequence[str] = (),
    ) -> AsyncGenerator[gateway_pb.WatchSessionResponse, None]:
        """Yield what happens in a session, for ever: events once and in order, live pieces between.

        Starts with the oldest event kept, after `resume_token`, or `from_now`. `payloads` are field
        names of `Event` or of `WatchSessionResponse`. Leave it with `aclosing`.
        """

        def request(token: str) -> gateway_pb.WatchSessionRequest:
            return gateway_pb.WatchSessionRequest(
                session_key=session_key,
                resume_token=token,
                from_now=from_now,
                include_descendants=include_descendants,
                payloads=payloads,
            )

        stream = self._to.stream(
            lambda stub: stub.WatchSession,
            request,
            lambda item: item.resume_token,
            resume_token=resume_token,
        )
        seen = _Seen()
        async with aclosing(stream):
            async for item in stream:
                if item.HasField("event") and not seen.first(
                    item.event.session_key, item.event.sequence
                ):
                    continue
                yield item

    async def acp_work(
        self,
        acp_session_id: str,
        message: str | content_pb.Message,
        *,
        queue_mode: lane_pb.QueueMode.ValueType = lane_pb.QUEUE_MODE_UNSPECIFIED,
        request_id: str | None = None,
    ) -> AsyncGenerator[gateway_pb.ChatResponse, None]:
        """Queue a prompt for an ACP session and yield what happens until its turn has ended.

        As `chat`: first `accepted`, then events with live pieces between them, among them what the
        harness does (`harness_updated`) and asks (`question_asked`), last `ended`. Leaving early
        does not stop the turn, `acp_cancel` does; leave with `aclosing`.
        """
        key = request_id or new_ulid()
        prompted = await self.acp_prompt(
            acp_session_id, message, queue_mode=queue_mode, request_id=key
        )
        async with aclosing(self.run_work(prompted.accepted, prompted.resume_token, key)) as stream:
            async for item in stream:
                yield item

    async def run_work(
        self, accepted: scheduler_pb.AcceptedRun, resume_token: str, request_id: str
    ) -> AsyncGenerator[gateway_pb.ChatResponse, None]:
        """Yield what happens in an accepted run until it ended, as `chat` does, for ever resumed.

        `resume_token` is a position before the run in its session, `request_id` the one under which
        it was accepted.
        """
        work = Work(accepted, request_id)
        yield gateway_pb.ChatResponse(accepted=accepted)
        session = accepted.run.spec.session_key
        async with aclosing(self.watch_session(session, resume_token=resume_token)) as stream:
            async for item in stream:
                told = work.take(item)
                if told is not None:
                    yield told
                if work.ended:
                    break
        found = await self.run(work.run_id)
        yield gateway_pb.ChatResponse(ended=found.run)

    async def watch_announcements(
        self,
        *,
        session_key: str = "",
        flow_id: str = "",
        resume_token: str = "",
        from_now: bool = False,
    ) -> AsyncGenerator[gateway_pb.WatchAnnouncementsResponse, None]:
        """Yield the ends of child runs, for ever, in order per session.

        Of one session, of one flow, or of everything when neither is named. Leave with `aclosing`.
        """

        def request(token: str) -> gateway_pb.WatchAnnouncementsRequest:
            wanted = gateway_pb.WatchAnnouncementsRequest(resume_token=token, from_now=from_now)
            if session_key:
                wanted.session_key = session_key
            elif flow_id:
                wanted.flow_id = flow_id
            else:
                wanted.all_sessions = True
            return wanted

        stream = self._to.stream(
            lambda stub: stub.WatchAnnouncements,
            request,
            lambda item: item.resume_token,
            resume_token=resume_token,
        )
        # What is repeated was told just before, so the newest few are enough to remember.
        told: deque[str] = deque(maxlen=1000)
        async with aclosing(stream):
            async for item in stream:
                if item.HasField("announcement"):
                    if item.announcement.announcement_id in told:
                        continue
                    told.append(item.announcement.announcement_id)
                yield item

    async def probe_model(
        self,
        model: str,
        *,
        tiers: Sequence[probe_pb.ProbeTier.ValueType] = (),
        repetitions: int = 0,
    ) -> AsyncGenerator[agent_pb.ProbeModelResponse, None]:
        """Measure how well a model delegates: results as they come, then the report.

        Costs model calls. No `tiers` means all; the report of a probe of all is kept by the suite.
        Leave it with `aclosing`: that ends the probe. Raises `ModelNotFound`, and `ModelRejected`
        or `ModelUnavailable` when the provider fails several times in a row.
        """
        async with aclosing(
            self._to.stream_once(
                lambda stub: stub.ProbeModel,
                agent_pb.ProbeModelRequest(model=model, tiers=tiers, repetitions=repetitions),
            )
        ) as stream:
            async for item in stream:
                yield item


class _Seen:
    """Which events were yielded, so that a resumed stream repeats none."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def first(self, session_key: str, sequence: int) -> bool:
        if sequence <= self._newest.get(session_key, 0):
            return False
        self._newest[session_key] = sequence
        return True

"""Finds out what is not there yet, by calling every RPC of every service."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import tempfile
from pathlib import Path

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from conveyor.scheduler.v1.worker_service_pb2_grpc import WorkerServiceStub
from conveyor_client.supervision.addresses import free_addresses
from svckit.errors import BY_REASON
from svckit.grpc.channel import make_channel
from svckit.grpc.status import from_proto, from_rpc_error
from svckit.service import running
from svckit.settings import Settings

# Service -> its process, and the address it listens on. The order is that of starting.
PROCESSES = {
    "scheduler_svc": (
        "conveyor.scheduler.v1.SchedulerService",
        "conveyor.scheduler.v1.WorkerService",
        "conveyor.scheduler.v1.FlowService",
        "conveyor.scheduler.v1.LimitService",
        "conveyor.events.v1.EventLogService",
    ),
    "agent_svc": ("conveyor.agent.v1.AgentService",),
    "acp_svc": ("conveyor.acp.v1.AcpService",),
    "gateway_svc": ("conveyor.gateway.v1.GatewayService",),
}


def _message(
    policy: lane_pb2.QueuePolicy | None = None,
    request_id: str = "probe",
    *,
    budget: run_pb2.Budget | None = None,
    preferred_worker: str = "",
) -> ss.EnqueueRunsRequest:
    message = content_pb2.Message(
        message_id="probe",
        role=content_pb2.ROLE_USER,
        parts=[content_pb2.ContentPart(text="probe")],
    )
    spec = run_pb2.RunSpec(
        session_key="agent:main:probe:direct:probe",
        queue="acp",
        budget=budget,
        preferred_worker=preferred_worker,
    )
    item = ss.EnqueueItem(spec=spec, message=message, request_id=request_id, queue_policy=policy)
    return ss.EnqueueRunsRequest(items=[item])


def _suspension(
    condition: run_pb2.WaitCondition, *, keep_lease: bool = False
) -> ws.SuspendRunRequest:
    return ws.SuspendRunRequest(condition=condition, hold_session_lane=True, keep_lease=keep_lease)


NOT_IMPLEMENTED = BY_REASON["NOT_IMPLEMENTED"]
SECONDS = 3.0


# Options of calls that are there: what is tried, and the request that uses it.
_ENQUEUE = "/conveyor.scheduler.v1.SchedulerService/EnqueueRuns"
_SUSPEND = "/conveyor.scheduler.v1.WorkerService/SuspendRun"
_STEER = "/conveyor.scheduler.v1.SchedulerService/SteerRun"
OPTIONS: tuple[tuple[str, str, Message], ...] = (
    (
        _ENQUEUE,
        "budgets of tokens, cost and wall time",
        _message(budget=run_pb2.Budget(max_tokens=1)),
    ),
    (
        _ENQUEUE,
        "`preferred_worker`",
        _message(preferred_worker="acp-0"),
    ),
    (
        _STEER,
        "the answer to a question",
        ss.SteerRunRequest(answer=question_pb2.Answer(question_id="q")),
    ),
    (
        _SUSPEND,
        "`keep_lease`",
        _suspension(run_pb2.WaitCondition(children=run_pb2.ChildrenWait()), keep_lease=True),
    ),
    (
        _SUSPEND,
        "a wait for an approval",
        _suspension(run_pb2.WaitCondition(approval=run_pb2.ApprovalWait(question_ids=["q"]))),
    ),
    (
        _SUSPEND,
        "a wait for a reservation",
        _suspension(run_pb2.WaitCondition(limit=run_pb2.LimitWait(reservation_id="r"))),
    ),
)


@dataclasses.dataclass
class Missing:
    """What answers `NOT_IMPLEMENTED`: RPCs with what they say, and options of RPCs that are there."""

    rpcs: dict[str, str] = dataclasses.field(default_factory=dict)
    options: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def missing() -> Missing:
    """Starts the services in this process and calls everything. RPCs as `/package.Service/Method`."""
    return asyncio.run(_missing())


async def _missing() -> Missing:
    found = Missing()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = dict(zip([*PROCESSES, "http"], free_addresses(5), strict=True))
        settings = _settings(directory, addresses)
        for process, services in PROCESSES.items():
            build = importlib.import_module(f"{process}.app").build
            service = await stack.enter_async_context(
                running(process, build, settings, addresses[process])
            )
            channel = await stack.enter_async_context(make_channel(service.address))
            for name in services:
                found.rpcs.update(await _probe(channel, name))
            if process == "scheduler_svc":  # alone so far: no worker takes the run away
                lease_id = await _lease(channel)
                for path, option, request in OPTIONS:
                    if isinstance(request, ws.SuspendRunRequest):
                        request.lease_id = lease_id
                    if await _is_refused(channel, path, request):
                        found.options.append((path.rpartition("/")[2], option))
    return found


async def _lease(channel: aio.Channel) -> str:
    """Accepts a run and takes it, as a worker would."""
    await SchedulerServiceStub(channel).EnqueueRuns(_message(lane_pb2.QueuePolicy(), "leased"))
    worker = ws.Worker(name="probe", incarnation=1)
    request = ws.LeaseRunsRequest(worker=worker, queue="acp", max_runs=1)
    request.wait.FromSeconds(round(SECONDS))
    answer = await WorkerServiceStub(channel).LeaseRuns(request, timeout=2 * SECONDS)
    return answer.leased_runs[0].lease.lease_id


async def _is_refused(channel: aio.Channel, path: str, request: Message) -> bool:
    if path != _ENQUEUE:
        return await _call(channel, path, request, streams=False) is not None
    enqueue: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    answer = ss.EnqueueRunsResponse.FromString(await enqueue(request.SerializeToString()))
    return isinstance(from_proto(answer.results[0].error), NOT_IMPLEMENTED)


def _settings(directory: Path, addresses: dict[str, str]) -> Settings:
    return Settings.model_validate(
        {
            "store": {"url": f"sqlite:///{directory}"},
            "services": {
                "scheduler": addresses["scheduler_svc"],
                "agent": addresses["agent_svc"],
                "acp": addresses["acp_svc"],
            },
            "gateway": {"grpc": addresses["gateway_svc"], "http": addresses["http"]},
            "log": {"level": "error"},
        }
    )


async def _probe(channel: aio.Channel, service: str) -> list[tuple[str, str]]:
    module = service.rpartition(".")[0].removesuffix(".v1").removeprefix("conveyor.")
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in service.rpartition(".")[2])
    importlib.import_module(f"conveyor.{module}.v1.{snake.removeprefix('_')}_pb2")
    found = []
    for method in descriptor_pool.Default().FindServiceByName(service).methods:
        path = f"/{service}/{method.name}"
        # An empty request may be refused for what it lacks before anybody looks whether the call is
        # there; a filled one gets further.
        for request in (GetMessageClass(method.input_type)(), _filled(method.input_type)):
            answer = await _call(channel, path, request, streams=bool(method.server_streaming))
            if answer is not None:
                found.append((path, answer))
                break
    return found


async def _call(channel: aio.Channel, path: str, request: Message, *, streams: bool) -> str | None:
    body = request.SerializeToString()
    try:
        async with asyncio.timeout(SECONDS):
            if streams:
                method: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
                call = method(body)
                try:
                    await call.read()
                    await call.code()
                finally:
                    call.cancel()
            else:
                unary: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
                await unary(body, timeout=SECONDS)
    except TimeoutError:
        return None  # it is at work, so it is there
    except aio.AioRpcError as err:
        problem = from_rpc_error(err)
        if isinstance(problem, NOT_IMPLEMENTED):
            return problem.message
        if err.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise SystemExit(f"{path} is not served at all") from err
    return None


def _filled(descriptor: Descriptor, depth: int = 3) -> Message:
    """A request in which every text, message and enum says something."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None and not field.message_type.full_name.startswith(
            "conveyor."
        ):
            continue
        if field.containing_oneof and message.WhichOneof(field.containing_oneof.name):
            continue
        values = {
            FieldDescriptor.TYPE_STRING: "probe",
            FieldDescriptor.TYPE_ENUM: 1,
        }
        if field.type == FieldDescriptor.TYPE_MESSAGE and depth and field.message_type is not None:
            inner = _filled(field.message_type, depth - 1)
            if field.is_repeated:
                getattr(message, field.name).add().CopyFrom(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
        elif field.type in values and not field.is_repeated:
            setattr(message, field.name, values[field.type])
    return message

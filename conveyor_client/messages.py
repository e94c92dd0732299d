"""What people say, as messages of the contract."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb


def as_message(message: str | content_pb.Message) -> content_pb.Message:
    """Return a message, made from a text if need be."""
    if isinstance(message, content_pb.Message):
        return message
    return content_pb.Message(
        role=content_pb.ROLE_USER, parts=[content_pb.ContentPart(text=message)]
    )


def as_inbound(
    message: str | content_pb.Message,
    session_key: str,
    agent_id: str,
    customer_key: str,
    queue_mode: lane_pb.QueueMode.ValueType,
    budget: run_pb.Budget | None,
    priority: int,
    labels: Mapping[str, str] | None,
) -> gateway_pb.InboundMessage:
    """Return what a sender says about a message."""
    return gateway_pb.InboundMessage(
        session_key=session_key,
        agent_id=agent_id,
        customer_key=customer_key,
        message=as_message(message),
        queue_mode=queue_mode,
        budget=budget,
        priority=priority,
        labels=labels,
    )

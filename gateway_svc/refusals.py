"""Errors that the gateway raises itself, for what is not there, or not for this caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway_svc.domain.principals import own_request_id
from svckit.errors import (
    AcpSessionNotFound,
    FlowNotFound,
    NotImplementedYet,
    QuestionNotFound,
    RunNotFound,
    ServiceError,
    SessionNotFound,
)


@contextmanager
def own_words() -> Iterator[None]:
    """Errors about a request id, raised inside the block, name it as the caller chose it."""
    try:
        yield
    except ServiceError as error:
        if "requestId" in error.metadata:
            error.metadata["requestId"] = own_request_id(error.metadata["requestId"])
        raise


def session_not_found(session_key: str) -> SessionNotFound:
    """Return the error for a session that does not exist, or not for the caller."""
    return SessionNotFound(
        "there is no such session; its first message creates it",
        metadata={"sessionKey": session_key[:256]},
    )


def flow_not_found(flow_id: str) -> FlowNotFound:
    """Return the error for a flow that does not exist, or not for the caller."""
    return FlowNotFound("there is no such flow", metadata={"flowId": flow_id[:64]})


def run_not_found(run_id: str) -> RunNotFound:
    """Return the error for a run that does not exist, or not for the caller."""
    return RunNotFound("there is no such run", metadata={"runId": run_id[:64]})


def acp_session_not_found(acp_session_id: str) -> AcpSessionNotFound:
    """Return the error for an ACP session that does not exist, or not for the caller."""
    return AcpSessionNotFound(
        "there is no such ACP session", metadata={"acpSessionId": acp_session_id[:64]}
    )


def question_not_found(question_id: str) -> QuestionNotFound:
    """Return the error for a question that does not exist, or not for the caller."""
    return QuestionNotFound("there is no such question", metadata={"questionId": question_id[:128]})


def not_yet(feature: str, what: str) -> NotImplementedYet:
    """Return the refusal of a call of the contract that this release does not have."""
    return NotImplementedYet(
        f"{feature} is not part of this release ({what} come later)", metadata={"feature": feature}
    )

"""Between the stored records of sessions and the contract's messages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf.duration_pb2 import Duration

from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.session import Mode, Opening, Session, Spec, State, Trouble
from acp_svc.domain.settings import Changes
from conveyor.acp.v1 import session_pb2 as pb
from svckit.errors import BY_REASON, Internal, ServiceError, invalid_field
from svckit.grpc.status import to_proto

STATES: Mapping[State, pb.AcpSessionState.ValueType] = MappingProxyType(
    {
        State.STARTING: pb.ACP_SESSION_STATE_STARTING,
        State.READY: pb.ACP_SESSION_STATE_READY,
        State.BUSY: pb.ACP_SESSION_STATE_BUSY,
        State.ASKING: pb.ACP_SESSION_STATE_ASKING,
        State.PARKED: pb.ACP_SESSION_STATE_PARKED,
        State.CLOSING: pb.ACP_SESSION_STATE_CLOSING,
        State.CLOSED: pb.ACP_SESSION_STATE_CLOSED,
        State.FAILED: pb.ACP_SESSION_STATE_FAILED,
    }
)
PERMISSION_MODES: Mapping[PermissionMode, pb.PermissionMode.ValueType] = MappingProxyType(
    {
        PermissionMode.APPROVE_READS: pb.PERMISSION_MODE_APPROVE_READS,
        PermissionMode.APPROVE_ALL: pb.PERMISSION_MODE_APPROVE_ALL,
        PermissionMode.DENY_ALL: pb.PERMISSION_MODE_DENY_ALL,
        PermissionMode.ASK: pb.PERMISSION_MODE_ASK,
    }
)
MODES: Mapping[Mode, pb.AcpSessionMode.ValueType] = MappingProxyType(
    {
        Mode.PERSISTENT: pb.ACP_SESSION_MODE_PERSISTENT,
        Mode.ONESHOT: pb.ACP_SESSION_MODE_ONESHOT,
    }
)
OPENINGS: Mapping[Opening | None, pb.AcpOpening.ValueType] = MappingProxyType(
    {
        None: pb.ACP_OPENING_UNSPECIFIED,
        Opening.NEW: pb.ACP_OPENING_NEW,
        Opening.RESUMED: pb.ACP_OPENING_RESUMED,
        Opening.LOADED: pb.ACP_OPENING_LOADED,
    }
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LONGEST_SECONDS = 86_400.0
_LENGTHS = MappingProxyType(
    {
        "harness_id": 64,
        "session_key": 1024,
        "cwd": 4096,
        "label": 64,
        "resume_id": 256,
        "model": 256,
        "customer_key": 256,
        "parent_session_key": 1024,
    }
)
_MOST_VARIABLES = 64


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a spec means that leaves something out."""

    permission_mode: PermissionMode
    ask_timeout_seconds: float
    turn_timeout_seconds: float


def spec_from_proto(given: pb.AcpSessionSpec, defaults: Defaults) -> Spec:
    """Return what is asked for, with the defaults; harness, key and directory as they were given.

    Raises `InvalidField`.
    """
    for name, longest in _LENGTHS.items():
        if len(getattr(given, name)) > longest:
            raise invalid_field(f"spec.{name}", f"must have at most {longest} characters")
        if "\0" in getattr(given, name):
            raise invalid_field(f"spec.{name}", "holds a zero byte")
    if len(given.env_names) > _MOST_VARIABLES:
        raise invalid_field("spec.env_names", f"must be at most {_MOST_VARIABLES}")
    for place, name in enumerate(given.env_names):
        if not _VARIABLE.fullmatch(name):
            raise invalid_field(f"spec.env_names[{place}]", "is no name of a variable")
    return Spec(
        harness_id=given.harness_id,
        session_key=given.session_key,
        cwd=given.cwd,
        mode=_mode(given.mode),
        permission_mode=permission_mode(given.permission_mode, "spec.permission_mode")
        or defaults.permission_mode,
        ask_timeout_seconds=seconds(given, "ask_timeout", "spec", 10.0)
        or defaults.ask_timeout_seconds,
        turn_timeout_seconds=seconds(given, "turn_timeout", "spec", 1.0)
        or defaults.turn_timeout_seconds,
        label=given.label,
        resume_id=given.resume_id,
        env_names=tuple(dict.fromkeys(given.env_names)),
        model=given.model,
        customer_key=given.customer_key,
        parent_session_key=given.parent_session_key,
    )


def permission_mode(given: int, field: str) -> PermissionMode | None:
    """Return the mode, or None when it is unspecified. Raises `InvalidField`."""
    if not given:
        return None
    for mode, number in PERMISSION_MODES.items():
        if number == given:
            return mode
    raise invalid_field(field, "is no permission mode")


def _mode(given: int) -> Mode:
    for mode, number in MODES.items():
        if number == (given or pb.ACP_SESSION_MODE_PERSISTENT):
            return mode
    raise invalid_field("spec.mode", "is no mode of a session")


def seconds(
    message: pb.AcpSessionSpec | pb.AcpSessionSettings, name: str, within: str, least: float
) -> float | None:
    """Return a duration of the message, or None when it is not set. Raises `InvalidField`."""
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    given: Duration = getattr(message, name)
    value = given.seconds + given.nanos / 1e9
    if not least <= value <= _LONGEST_SECONDS:
        raise invalid_field(
            f"{within}.{name}", f"must be {least:.0f} to {_LONGEST_SECONDS:.0f} seconds"
        )
    return value


def changes_from_proto(given: pb.AcpSessionSettings) -> Changes:
    """Return what is to change; the directory as it was given. Raises `InvalidField`."""
    label = given.label if given.HasField("label") else None
    if label is not None and len(label) > _LENGTHS["label"]:
        raise invalid_field("settings.label", f"must have at most {_LENGTHS['label']} characters")
    if given.HasField("model") and not given.model:
        raise invalid_field("settings.model", "must not be empty; leave it out to keep the model")
    if given.HasField("cwd") and not 1 <= len(given.cwd) <= _LENGTHS["cwd"]:
        raise invalid_field("settings.cwd", f"must have 1 to {_LENGTHS['cwd']} characters")
    return Changes(
        permission_mode=permission_mode(given.permission_mode, "settings.permission_mode"),
        harness_mode=given.harness_mode if given.HasField("harness_mode") else None,
        model=given.model if given.HasField("model") else None,
        label=label,
        options=dict(given.options),
        cwd=given.cwd if given.HasField("cwd") else None,
        turn_timeout_seconds=seconds(given, "turn_timeout", "settings", 1.0),
        fresh=given.fresh,
    )


def states(given: Iterable[int]) -> tuple[State, ...]:
    """Return the states of a filter. Raises `InvalidField`."""
    by_number: dict[int, State] = {number: state for state, number in STATES.items()}
    found = []
    for place, number in enumerate(given):
        if number not in by_number:
            raise invalid_field(f"filter.states[{place}]", "is no state of a session")
        found.append(by_number[number])
    return tuple(found)


def session_to_proto(session: Session) -> pb.AcpSession:
    """Return a session as it is shown."""
    spec = session.spec
    out = pb.AcpSession(
        acp_session_id=session.session_id,
        spec=pb.AcpSessionSpec(
            harness_id=spec.harness_id,
            session_key=spec.session_key,
            cwd=spec.cwd,
            mode=MODES[spec.mode],
            permission_mode=PERMISSION_MODES[spec.permission_mode],
            label=spec.label,
            resume_id=spec.resume_id,
            env_names=spec.env_names,
            model=spec.model,
            customer_key=spec.customer_key,
            parent_session_key=spec.parent_session_key,
        ),
        state=STATES[session.state],
        upstream_session_id=session.upstream_id,
        loadable=session.loadable,
        worker=session.worker,
        run_id=session.run_id,
        open_questions=session.open_questions,
        harness_modes=session.harness_modes,
        harness_mode=session.harness_mode,
        opening=OPENINGS[session.opening],
        options=session.options,
        models=session.models,
        sandboxed=session.sandboxed,
    )
    out.spec.ask_timeout.FromMicroseconds(round(spec.ask_timeout_seconds * 1_000_000))
    out.spec.turn_timeout.FromMicroseconds(round(spec.turn_timeout_seconds * 1_000_000))
    out.create_time.FromMicroseconds(session.create_us)
    out.active_time.FromMicroseconds(session.active_us)
    if session.end_us:
        out.end_time.FromMicroseconds(session.end_us)
    if session.trouble is not None:
        out.error.CopyFrom(to_proto(error_of(session.trouble)))
    return out


def trouble_of(error: ServiceError) -> Trouble:
    """Return an error as it is stored."""
    return Trouble(error.reason, error.message, dict(error.metadata))


def error_of(trouble: Trouble) -> ServiceError:
    """Return a stored error as it is raised and shown."""
    return BY_REASON.get(trouble.reason, Internal)(trouble.message, metadata=trouble.metadata)


def body_hash(given: pb.AcpSessionSpec) -> str:
    """Return a fingerprint of what was asked for, to tell a repeated call from another one."""
    return hashlib.sha256(given.SerializeToString(deterministic=True)).hexdigest()

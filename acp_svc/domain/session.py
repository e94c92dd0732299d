"""The record of an ACP session, and how it passes through its life.

A session outlives processes: of the harness, and of this service. Each function here takes the
record as it is stored and returns it as it is afterwards; an ended session comes back as it was,
whatever is said about it. The states::

    STARTING ──> READY <──> BUSY <──> ASKING        a process is there
        │          │          │
        │          └──> PARKED <── a restart, a crash, or room for another session
        v                │
      FAILED          CLOSING ──> CLOSED            from any state that is not an end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from acp_svc.domain.permissions import PermissionMode

MOST_REMEMBERED = 500


class State(Enum):
    """Where a session is in its life; as `AcpSessionState`."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    ASKING = "asking"
    PARKED = "parked"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in (State.CLOSED, State.FAILED)

    @property
    def open(self) -> bool:
        """Whether it takes prompts, or will."""
        return not self.ended and self is not State.CLOSING


class Mode(Enum):
    """How long a session lives."""

    PERSISTENT = "persistent"
    ONESHOT = "oneshot"


class Opening(Enum):
    """How the session inside the harness was opened."""

    NEW = "new"
    RESUMED = "resumed"
    LOADED = "loaded"


class Trouble(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is stored: what `ServiceError` holds."""

    reason: str
    message: str
    metadata: dict[str, str] = {}


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for, every default filled in, as changed since."""

    harness_id: str
    session_key: str
    cwd: str
    """Links and `..` followed, inside an allowed root. The process starts exactly there."""
    permission_mode: PermissionMode
    ask_timeout_seconds: float
    turn_timeout_seconds: float
    mode: Mode = Mode.PERSISTENT
    label: str = ""
    resume_id: str = ""
    env_names: tuple[str, ...] = ()
    model: str = ""
    customer_key: str = ""
    parent_session_key: str = ""


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session as it is stored."""

    session_id: str
    spec: Spec
    create_us: int
    active_us: int
    """When it last did something: opening, a prompt, an answer, a change of its settings."""
    state: State = State.STARTING
    deferred: bool = False
    """True when a run opens it, false when its spawn does."""
    worker: str = ""
    """Who holds its process. Empty without one."""
    run_id: str = ""
    """The run at work."""
    open_questions: int = 0
    upstream_id: str = ""
    """The harness's own id of it. Empty before it opened, and when a new one is to be opened."""
    loadable: bool = False
    """Whether the harness can open `upstream_id` again."""
    prompted: bool = False
    """Whether the session inside the harness was told anything: one that was not loses nothing when
    a new one takes its place."""
    worked: bool = False
    """Whether a prompt was ever sent to it."""
    opening: Opening | None = None
    """How the session inside the harness was last opened. None before the first time."""
    harness_mode: str = ""
    harness_modes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    options: dict[str, str] = {}
    sandboxed: bool = False
    wanted_mode: str = ""
    """The harness's mode that was asked for. Empty leaves it to the permission mode."""
    wanted_options: dict[str, str] = {}
    remembered: dict[str, bool] = {}
    """What people allowed or denied for the rest of it, by `permissions.memory_key`."""
    trouble: Trouble | None = None
    """Why it failed, or its last turn did."""
    end_us: int = 0

    @property
    def survives(self) -> bool:
        """Whether its process can be stopped and nothing that was said gets lost."""
        return self.loadable or not self.prompted


def opened(
    session: Session,
    *,
    worker: str,
    now_us: int,
    upstream_id: str,
    how: Opening,
    loadable: bool,
    sandboxed: bool,
    harness_mode: str,
    harness_modes: Sequence[str],
    models: Sequence[str],
    options: Mapping[str, str],
) -> Session:
    """A process holds the session. Reopened for a run that is at work, the run stays."""
    if not session.state.open:
        return session
    return msgspec.structs.replace(
        session,
        state=State.BUSY if session.run_id else State.READY,
        worker=worker,
        open_questions=0,
        active_us=now_us,
        upstream_id=upstream_id,
        opening=how,
        loadable=loadable,
        # One that was resumed or loaded may know what we never sent.
        prompted=how is not Opening.NEW,
        sandboxed=sandboxed,
        harness_mode=harness_mode,
        harness_modes=tuple(harness_modes),
        models=tuple(models),
        options=dict(options),
        trouble=session.trouble if session.run_id else None,
    )


def wanted(session: Session, now_us: int) -> Session:
    """Somebody wants to use it, and has to wait for room."""
    if not session.state.open:
        return session
    return msgspec.structs.replace(session, active_us=now_us)


def not_opened(session: Session, trouble: Trouble, now_us: int) -> Session:
    """Opening it failed: the end of one that was never open, another try later for any other."""
    if not session.state.open:
        return session
    if session.state is State.STARTING:
        return msgspec.structs.replace(
            _still(session), state=State.FAILED, trouble=trouble, end_us=now_us
        )
    return msgspec.structs.replace(
        session,
        state=State.BUSY if session.run_id else State.PARKED,
        worker="",
        open_questions=0,
        trouble=trouble,
        active_us=now_us,
    )


def at_work(session: Session, run_id: str, now_us: int) -> Session:
    """A prompt of this run is at work."""
    if not session.state.open:
        return session
    return msgspec.structs.replace(
        session, state=State.BUSY, run_id=run_id, open_questions=0, active_us=now_us, trouble=None
    )


def sending(session: Session, now_us: int) -> Session:
    """A prompt is about to be sent to it."""
    return msgspec.structs.replace(session, prompted=True, worked=True, active_us=now_us)


def prompted_again(session: Session) -> Session:
    """Its run has another prompt for it: a session for one turn does not close after this one."""
    return msgspec.structs.replace(session, worked=False)


def asking(session: Session, open_questions: int, now_us: int) -> Session:
    """So many questions of the run at work wait for people."""
    if session.state not in (State.BUSY, State.ASKING):
        return session
    return msgspec.structs.replace(
        session,
        state=State.ASKING if open_questions else State.BUSY,
        open_questions=open_questions,
        active_us=now_us,
    )


def remembering(session: Session, said: Mapping[str, bool]) -> Session:
    """People said something for the rest of the session; the newest is kept."""
    kept = {key: allowed for key, allowed in session.remembered.items() if key not in said}
    kept.update(said)
    return msgspec.structs.replace(session, remembered=dict(list(kept.items())[-MOST_REMEMBERED:]))


def rested(session: Session, *, has_process: bool, now_us: int) -> Session:
    """The run at work ended its turn. A session for one turn closes, once it was told something."""
    if session.state.ended or not session.run_id:
        return session
    after = msgspec.structs.replace(session, run_id="", open_questions=0, active_us=now_us)
    if session.state is State.CLOSING:
        return after
    if session.spec.mode is Mode.ONESHOT and session.worked:
        return msgspec.structs.replace(after, state=State.CLOSING)
    if not has_process:
        return parked(after)
    return msgspec.structs.replace(after, state=State.READY)


def troubled(session: Session, trouble: Trouble) -> Session:
    """Its last turn failed; it lives on."""
    if session.state.ended:
        return session
    return msgspec.structs.replace(session, trouble=trouble)


def parked(session: Session, trouble: Trouble | None = None) -> Session:
    """Its process is gone, on purpose or, with `trouble`, by itself."""
    if not session.state.open or session.state is State.STARTING:
        return session
    return msgspec.structs.replace(
        _still(session), state=State.PARKED, trouble=trouble or session.trouble
    )


def closing(session: Session) -> Session:
    """It is to end; the process is being stopped."""
    if session.state.ended:
        return session
    return msgspec.structs.replace(session, state=State.CLOSING)


def closed(session: Session, now_us: int) -> Session:
    """Nothing of it is left."""
    if session.state.ended:
        return session
    return msgspec.structs.replace(_still(session), state=State.CLOSED, end_us=now_us)


def after_restart(session: Session, now_us: int) -> Session:
    """What a session is whose service was gone without a word: no process of it is left.

    One that was never open still waits for the run or the repeated call that opens it. All others
    are opened again by their next prompt, as the harness can: how is said then.
    """
    if session.spec.mode is Mode.ONESHOT and session.worked:
        return closed(session, now_us)  # it had its turn
    match session.state:
        case State.CLOSING:
            return closed(session, now_us)
        case State.STARTING:
            return msgspec.structs.replace(session, worker="")
        case _:
            return parked(session)


def _still(session: Session) -> Session:
    return msgspec.structs.replace(session, worker="", run_id="", open_questions=0)

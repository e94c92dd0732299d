"""What a handler of commands gets and gives back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message
from opentelemetry import trace

from gateway_svc.auth import Principal
from gateway_svc.conversations import Conversations
from gateway_svc.domain.commands.parsing import Command
from gateway_svc.domain.routing import Routed, RoutingRules
from gateway_svc.harness_sessions import HarnessSessions
from gateway_svc.intake import Intake
from gateway_svc.operations import Operations
from gateway_svc.questions import Questions
from gateway_svc.watching.log import EventLog
from svckit.clock import Clock
from svckit.database import Database


class Refused(Exception):
    """A command cannot be done; `str()` says why in one line, with an example."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command: for people in Markdown, and for programs."""

    text: str
    data: Message | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """The lists that a conversation was shown last: numbers in commands count in them."""

    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    last: str = ""

    @classmethod
    def read(cls, text: str) -> Shown:
        """Read what `write` made; empty for what cannot be read."""
        content = json.loads(text) if text else {}
        return cls(content.get("lists", {}), content.get("last", ""))

    def write(self) -> str:
        """Return it as text."""
        return json.dumps({"lists": dict(self.lists), "last": self.last}, separators=(",", ":"))

    def of(self, kind: str = "") -> Sequence[str]:
        """Return the ids of a list, of the one shown last by default."""
        return self.lists.get(kind or self.last, ())


@dataclass(frozen=True, slots=True)
class Asked:
    """A command that somebody gave.

    `routed` is the message with its conversation, `None` for a command that is about none. `decide`
    finds out which ids the command is about, and remembers them: when the same request comes again
    after a crash, it is about the same ones, whatever has begun or ended since.
    """

    command: Command
    request_id: str
    principal: Principal
    routed: Routed | None
    decide: Callable[[Callable[[], Awaitable[Sequence[str]]]], Awaitable[Sequence[str]]]

    @property
    def session_key(self) -> str:
        """The conversation, empty for none."""
        return self.routed.key.text if self.routed else ""

    @property
    def conversation(self) -> Routed:
        """The conversation of a command that needs one."""
        assert self.routed is not None, "the grammar says that this command needs a session"
        return self.routed

    def get(self, name: str) -> str:
        """Return an argument, empty when it was not given."""
        return self.command.get(name)


Handler = Callable[[Asked], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work with. `providers` are the ids of the configured model providers."""

    database: Database
    intake: Intake
    operations: Operations
    conversations: Conversations
    questions: Questions
    harness_sessions: HarnessSessions
    event_log: EventLog
    rules: RoutingRules
    clock: Clock
    tracer: trace.Tracer
    providers: frozenset[str] = frozenset()

"""Everything the gateway can do, for both of its doors: gRPC and HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from gateway_svc.about import About
from gateway_svc.conversations import Conversations
from gateway_svc.harness_sessions import HarnessSessions
from gateway_svc.hooks import Hooks
from gateway_svc.inbox import Inbox
from gateway_svc.operations import Operations
from gateway_svc.questions import Questions
from gateway_svc.watching.announcements import AnnouncementWatcher
from gateway_svc.watching.chat import ChatService
from gateway_svc.watching.session import SessionWatcher


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer and the HTTP routes translate to."""

    inbox: Inbox
    chats: ChatService
    sessions: SessionWatcher
    announcements: AnnouncementWatcher
    conversations: Conversations
    operations: Operations
    questions: Questions
    harness_sessions: HarnessSessions
    hooks: Hooks
    about: About

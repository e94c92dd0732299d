"""Push channels: everything that was said is delivered, in order, whatever breaks."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.auth import LOCAL
from gateway_svc.delivery.channel import Delivery, DeliveryFailed, Undeliverable
from gateway_svc.delivery.dispatcher import Dispatcher
from gateway_svc.domain.deliveries import AnnounceStyle, DeliveryKind
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.inbox import Inbox
from gateway_svc.store import outbox
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, delegating, failing, suite, user


@dataclass
class Phone:
    """A channel that remembers what it delivered, and fails when told to."""

    name: str = "phone"
    sent: list[Delivery] = field(default_factory=list)
    tried: list[Delivery] = field(default_factory=list)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    crash: bool = False

    async def deliver(self, delivery: Delivery) -> None:
        self.tried.append(delivery)
        peer = delivery.address.peer
        if peer in self.stuck:
            await asyncio.Event().wait()
        if waiting := self.failures.get(peer):
            raise waiting.pop(0)
        self.sent.append(delivery)
        if self.crash:
            # The process dies after the other side has it and before we could note that.
            await asyncio.Event().wait()

    def texts(self, peer: str) -> list[str]:
        return [item.text for item in self.sent if item.address.peer == peer]


class Caught:
    """The inbox of a running gateway, as a channel adapter would use it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inboxes: list[Inbox] = []
        made = Inbox.__init__

        def remember(inbox: Inbox, *args: Any) -> None:
            made(inbox, *args)
            self.inboxes.append(inbox)

        monkeypatch.setattr(Inbox, "__init__", remember)

    async def hear(self, peer: str, text: str, request_id: str = "") -> str:
        """Take in what a peer wrote to the channel; returns the run id."""
        inbound = gw.InboundMessage(
            session_key=f"agent:main:phone:direct:{peer}", message=user(text)
        )
        taken = await self.inboxes[-1].accept(
            inbound,
            request_id or f"{peer}-{text}".replace(" ", "_"),
            LOCAL,
            ReplyAddress(channel="phone", peer=peer),
        )
        return taken.accepted.run.run_id


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    return Caught(monkeypatch)


def serving(tmp_path: Path, phone: Phone) -> Any:
    return suite(tmp_path, [phone])


async def test_replies_reach_the_channel_in_order(tmp_path: Path, caught: Caught) -> None:
    phone = Phone()
    async with serving(tmp_path, phone) as around, around.serve():
        for text in ("one", "two", "three"):
            await caught.hear("ann", text)
        await eventually(lambda: len(phone.texts("ann")) == 3)
        assert phone.texts("ann") == ["echo: one", "echo: two", "echo: three"]
        assert {item.kind for item in phone.sent} == {DeliveryKind.REPLY}
        assert len({item.idempotency_key for item in phone.sent}) == 3
        text = (await around.http.get("/metrics")).text
        assert 'conveyor_deliveries_pending{channel="phone"} 0.0' in text
        assert 'conveyor_deliveries_total{channel="phone",outcome="delivered"} 3.0' in text


async def test_what_was_said_elsewhere_is_not_pushed(tmp_path: Path, caught: Caught) -> None:
    phone = Phone()
    async with serving(tmp_path, phone) as around, around.serve():
        # Over gRPC, into the very session of the channel: its route is not the channel's.
        await around.send("agent:main:phone:direct:ann", "from the console")
        await caught.hear("ann", "from the phone")
        await eventually(lambda: phone.texts("ann"))
        assert phone.texts("ann") == ["echo: from the phone"]


async def test_a_command_is_answered_on_the_channel_once(tmp_path: Path, caught: Caught) -> None:
    phone = Phone()
    async with serving(tmp_path, phone) as around, around.serve():
        await caught.hear("ann", "/queue collect", request_id="wamid-1")
        await caught.hear("ann", "/queue collect", request_id="wamid-1")
        await caught.hear("ann", "hello")
        await eventually(lambda: "echo: hello" in phone.texts("ann"))
        [answer, _] = phone.texts("ann")
        assert answer.startswith("Queue mode collect")


async def test_who_sent_a_dropped_message_is_told_on_the_channel(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone()
    full = {
        "CONVEYOR_LANES__SESSION__CAP": "1",
        "CONVEYOR_LANES__SESSION__OVERFLOW": "drop_oldest",
    }
    async with suite(tmp_path, [phone], **full) as around, around.serve():
        around.agent.hold("busy")
        await caught.hear("ann", "busy")
        await eventually(lambda: around.agent.started == ["busy"])
        await caught.hear("ann", "too many")
        await caught.hear("ann", "newer")
        await eventually(lambda: phone.texts("ann"))
        assert phone.sent[0].kind is DeliveryKind.NOTE
        assert phone.texts("ann")[0].startswith("A newer message took the place of this one")
        around.agent.let_go("busy")


@pytest.mark.parametrize("style", list(AnnounceStyle))
async def test_announcements_follow_the_style_of_the_channel_in_order_with_the_replies(
    tmp_path: Path, caught: Caught, style: AnnounceStyle
) -> None:
    phone = Phone()
    told = {"CONVEYOR_CHANNELS__PHONE__KIND": "telegram"}
    told["CONVEYOR_CHANNELS__PHONE__ANNOUNCE_STYLE"] = style.value
    async with suite(tmp_path, [phone], **told) as around, around.serve():
        around.agent.on("go", delegating("one", "two"))
        around.agent.hold("two")
        await caught.hear("ann", "go")
        if style is not AnnounceStyle.OFF:
            await eventually(lambda: phone.texts("ann"))
        around.agent.let_go("two")
        await eventually(lambda: "echo: one; echo: two" in phone.texts("ann"))
        lines = [re.sub(r"in [\d.]+ s", "in N s", text) for text in phone.texts("ann")]
        expected = {
            AnnounceStyle.OFF: [],
            AnnounceStyle.STATUS: ["✓ one: done in N s (1 of 2)", "✓ two: done in N s (2 of 2)"],
            AnnounceStyle.FULL: [
                "✓ one: done in N s (1 of 2)\necho: one",
                "✓ two: done in N s (2 of 2)\necho: two",
            ],
        }
        assert lines == [*expected[style], "echo: one; echo: two"]


async def test_a_failed_request_is_told_in_one_line(tmp_path: Path, caught: Caught) -> None:
    phone = Phone()
    async with serving(tmp_path, phone) as around, around.serve():
        around.agent.on("break", failing)
        run_id = await caught.hear("ann", "break")
        await eventually(lambda: phone.texts("ann") == ["That did not work: the tool broke"])
        assert phone.sent[0].kind is DeliveryKind.FAILURE
        run = (await around.http.get(f"/v1/runs/{run_id}")).json()["run"]
        assert run_pb2.RunState.Value(run["state"]) == run_pb2.RUN_STATE_FAILED


async def test_a_failed_delivery_is_tried_again_before_the_next(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone(
        failures={
            "ann": [DeliveryFailed("busy", 0.01), RuntimeError("odd"), DeliveryFailed("b", 0)]
        }
    )
    async with serving(tmp_path, phone) as around, around.serve():
        await caught.hear("ann", "one")
        await caught.hear("ann", "two")
        await eventually(lambda: len(phone.texts("ann")) == 2)
        assert phone.texts("ann") == ["echo: one", "echo: two"]
        assert [item.attempt for item in phone.tried] == [1, 2, 3, 4, 1]
        assert len({item.idempotency_key for item in phone.tried}) == 2


async def test_a_pause_does_not_last_longer_because_the_clock_was_set_back(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a gateway that starts again, the next attempt is an hour away."""
    phone = Phone(failures={"ann": [DeliveryFailed("busy", 3600)]})
    monkeypatch.setattr("gateway_svc.delivery.dispatcher._LONGEST_PAUSE", 0.1)
    postponed, postpone = asyncio.Event(), outbox.postpone

    def note(connection: Any, outbox_id: int, next_us: int, problem: str) -> None:
        postpone(connection, outbox_id, next_us, problem)
        loop.call_soon_threadsafe(postponed.set)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(outbox, "postpone", note)
    async with serving(tmp_path, phone) as around:
        async with around.serve():
            await caught.hear("ann", "one")
            await postponed.wait()
        async with around.serve():
            await eventually(lambda: phone.texts("ann") == ["echo: one"])


async def test_what_cannot_be_delivered_is_given_up_and_the_next_goes(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone(failures={"ann": [Undeliverable("the number is gone")]})
    async with serving(tmp_path, phone) as around, around.serve():
        await caught.hear("ann", "one")
        await caught.hear("ann", "two")
        await eventually(lambda: phone.texts("ann") == ["echo: two"])
        text = (await around.http.get("/metrics")).text
        assert 'conveyor_deliveries_total{channel="phone",outcome="given_up"} 1.0' in text


async def test_one_recipients_trouble_holds_no_other(tmp_path: Path, caught: Caught) -> None:
    phone = Phone(stuck={"stuck"}, failures={"busy": [DeliveryFailed("busy", 600)]})
    async with serving(tmp_path, phone) as around, around.serve():
        for peer in ("stuck", "busy", "ann"):
            await caught.hear(peer, "one")
        await caught.hear("ann", "two")
        await eventually(lambda: len(phone.texts("ann")) == 2)
        assert phone.texts("stuck") == phone.texts("busy") == []


async def test_a_crash_between_the_cursor_and_the_delivery_loses_nothing(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dispatcher never runs: the cursor moves past events that nobody has been told."""
    phone = Phone()

    async def dead(_: Dispatcher) -> None:
        await asyncio.Event().wait()

    async with serving(tmp_path, phone) as around:
        with monkeypatch.context() as broken:
            broken.setattr(Dispatcher, "run", dead)
            async with around.serve():
                for text in ("one", "two"):
                    await caught.hear("ann", text)

                async def stored() -> bool:
                    text = (await around.http.get("/metrics")).text
                    return 'conveyor_deliveries_pending{channel="phone"} 2.0' in text

                await eventually(stored)
        assert phone.sent == []
        async with around.serve():
            await eventually(lambda: phone.texts("ann") == ["echo: one", "echo: two"])
            await caught.hear("ann", "three")
            await eventually(lambda: len(phone.sent) == 3)
    assert phone.texts("ann") == ["echo: one", "echo: two", "echo: three"]


async def test_a_crash_before_the_cursor_moved_tells_nothing_twice(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read again from the beginning: each event has one place in the outbox."""
    phone = Phone()
    async with serving(tmp_path, phone) as around:
        async with around.serve():
            await caught.hear("ann", "one")
            await eventually(lambda: phone.texts("ann") == ["echo: one"])
        with monkeypatch.context() as forgetful:
            forgetful.setattr("gateway_svc.store.outbox.read_cursor", lambda _: None)
            async with around.serve():
                await caught.hear("ann", "two")
                await eventually(lambda: "echo: two" in phone.texts("ann"))
    assert phone.texts("ann") == ["echo: one", "echo: two"]


async def test_a_crash_while_sending_repeats_with_the_same_key(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone(crash=True)
    async with serving(tmp_path, phone) as around:
        async with around.serve():
            await caught.hear("ann", "one")
            await eventually(lambda: phone.sent)
        phone.crash = False
        async with around.serve():
            await eventually(lambda: len(phone.sent) == 2)
    assert phone.texts("ann") == ["echo: one", "echo: one"]
    assert len({item.idempotency_key for item in phone.sent}) == 1


async def test_the_follower_waits_for_a_store_that_takes_no_writes(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway_svc.store import outbox
    from svckit.errors import StoreUnavailable

    phone = Phone()
    real, failed = outbox.move_cursor, []

    def full(*args: Any) -> None:
        if not failed:
            failed.append(args)
            raise StoreUnavailable("disk full", retry_after=0.01)
        real(*args)

    monkeypatch.setattr("gateway_svc.store.outbox.move_cursor", full)
    async with serving(tmp_path, phone) as around, around.serve():
        await caught.hear("ann", "one")
        await eventually(lambda: phone.texts("ann") == ["echo: one"])
    assert failed
    assert len(phone.sent) == 1


async def test_sessions_are_known_without_the_answer_to_the_sender(
    gateway: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the scheduler's commit: the follower makes the session visible."""
    monkeypatch.setattr("gateway_svc.store.sessions.touch", _touch_only_from_the_log())
    await gateway.send("alice", "hello")

    async def visible() -> bool:
        listed = await gateway.stub.ListSessions(gw.ListSessionsRequest())
        return [s.session_key for s in listed.sessions] == ["alice"]

    await eventually(visible)


def _touch_only_from_the_log() -> Any:
    from gateway_svc.store import sessions

    real, calls = sessions.touch, []

    def touch(*args: Any, **more: Any) -> bool:
        calls.append(args)
        return real(*args, **more) if len(calls) > 1 else True

    return touch

"""What watchers see of messages that are being written."""

from __future__ import annotations

from scheduler_svc.live import MESSAGE_LIMIT, LiveMessages, Sent
from scheduler_svc.store.base import EventQuery

A, B = EventQuery(session_key="a"), EventQuery(session_key="b")


def seen(sent: Sent, live: LiveMessages, query: EventQuery = A) -> list[tuple[str, int]]:
    return [(text, offset) for _, text, offset in sent.pieces(live.seen_by(query))]


def write(live: LiveMessages, text: str, offset: int, run: str = "r", session: str = "a") -> None:
    live.write(run, session, "f", [("m", text, offset)])


def test_each_piece_is_sent_once_and_a_late_watcher_gets_the_message_so_far() -> None:
    live, early = LiveMessages(), Sent()
    write(live, "Hel", 0)
    assert seen(early, live) == [("Hel", 0)]
    write(live, "lo", 3)
    write(live, "lo", 3)
    assert seen(early, live) == [("lo", 3)]
    assert seen(early, live) == []
    assert seen(Sent(), live) == [("Hello", 0)]


def test_the_same_message_id_in_two_sessions_is_two_messages() -> None:
    live = LiveMessages()
    write(live, "one", 0)
    write(live, "two", 0, run="r2", session="b")
    assert seen(Sent(), live, A) == [("one", 0)]
    assert seen(Sent(), live, B) == [("two", 0)]
    assert sorted(seen(Sent(), live, EventQuery(flow_id="f"))) == [("one", 0), ("two", 0)]


def test_a_message_whose_beginning_is_not_known_keeps_its_place() -> None:
    """The scheduler started again while a worker was in the middle of a message."""
    live, watcher = LiveMessages(), Sent()
    write(live, "world", 6)
    assert seen(watcher, live) == [("world", 6)]
    write(live, "!", 11)
    assert seen(watcher, live) == [("!", 11)]
    write(live, "Hello world!", 0)  # another attempt
    assert seen(watcher, live) == [("Hello world!", 0)]


def test_a_message_that_was_dropped_and_began_again_is_sent_again() -> None:
    live, watcher = LiveMessages(), Sent()
    write(live, "a first attempt", 0)
    assert len(seen(watcher, live)) == 1
    live.drop("a", "r")
    write(live, "another", 0)
    assert seen(watcher, live) == [("another", 0)]


def test_nothing_stays_of_messages_that_are_complete_and_no_message_grows_for_ever() -> None:
    live = LiveMessages()
    for n in range(3):
        write(live, "x", 0, session=f"s{n}")
        live.drop(f"s{n}", "another run")
        assert len(live.seen_by(EventQuery())) == 1
        live.drop(f"s{n}", "r")
    assert vars(live) == {"_by_session": {}, "_by_flow": {}}
    for n in range(MESSAGE_LIMIT // 1000 + 9):
        write(live, "y" * 1000, n * 1000)
    [message] = live.seen_by(EventQuery())
    assert len(message.text) <= MESSAGE_LIMIT

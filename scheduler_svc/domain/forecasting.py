"""Plays a load through the lanes on a virtual clock.

The order in which runs get slots is decided by the same `ReadyQueue`, `GlobalLane` and `Session` as
in the kernel; what surrounds them there (leases, events, the store) is left out, and a run is a
slim object, because a load may have a million of them. A property test holds the two against each
other: they give the same times. There are always enough workers, and every turn succeeds.

At every instant first the turns that end then are ended, in the order in which they began; then
arrivals are taken in; then free slots are filled, the lanes taking turns as in `lease_ready`.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterator

import msgspec

from scheduler_svc.domain.arrivals import Arrival, Arrivals, Chance, Draw
from scheduler_svc.domain.distributions import Fixed, Times
from scheduler_svc.domain.forecast_tally import BriefTally, LaneUse, Tally
from scheduler_svc.domain.lanes import GlobalLane, Session
from scheduler_svc.domain.limits import Limiter, Phase, ProviderRates, Reservation

ROOT_LANE = "main"
# Which kind of worker does not matter here: there are always enough of them.
_QUEUE = "agent"
_NEVER = sys.maxsize
_LATER = -1


class Children(msgspec.Struct, frozen=True):
    """What every root run spawns at the end of its first turn."""

    per_turn: int
    time: Times
    # The parent answers at once and gives its session lane up; else it keeps it and answers last.
    background: bool = False
    # Time of the turn after the last child settled; without one the flow ends there.
    closing_time: Times | None = None
    lane: str = "subagent"


class Load(msgspec.Struct, frozen=True):
    """What a forecast is about. Times are microseconds."""

    arrivals: Arrivals
    turn_time: Times
    # Limits by lane, in the order in which lanes take turns.
    lanes: dict[str, int]
    children: Children | None = None
    # 0: no limit.
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_turn: int = 0
    cost_per_turn: int = 0


# Which turn of a flow a piece does next. Plain numbers: members of an enum are slow to look up.
_FIRST, _CLOSING, _CHILD = range(3)
# What a piece does.
_QUEUED, _RUNNING, _WAITING = range(3)


class _Piece(msgspec.Struct):
    """What the lanes and this loop have to know of a run. The first six fields are a `Run`'s."""

    run_id: str
    customer_key: str
    create_time: int
    order: int
    priority: int
    # Of the customer, and of the message that this is about.
    customer: int
    number: int
    step: int
    use: LaneUse
    turn_time: int
    queued_since: int
    ready_since: int
    resumed: bool = False
    state: int = _QUEUED
    # The provider's permission for the next turn, or the wait for it.
    call: Reservation | None = None
    session: Session | None = None
    parent: _Piece | None = None
    # Children that have not settled.
    live: int = 0
    # Messages of the same session that came with this one and follow it.
    more: int = 0
    stride: int = 0

    @property
    def place(self) -> int:
        """As `Run.place`: nothing of a load goes ahead of its session."""
        return self.order


def simulate(load: Load, chance: Chance, *, brief: bool = False) -> Tally:
    """Plays the load to its end and returns what happened; `brief` leaves customers and waves out.

    `chance` gives the same numbers whatever the limits are, so that two
    plays with different limits are about the same load.
    """
    return _Player(load, chance, BriefTally if brief else Tally).play()


class _Player:
    def __init__(self, load: Load, chance: Chance, tally: type[Tally]) -> None:
        self._load = load
        self._chance = chance
        weights = load.arrivals.weights
        self._uses = [
            LaneUse(lane := GlobalLane(name, limit, weights), lane.queue(_QUEUE))
            for name, limit in load.lanes.items()
        ]
        self._by_name = {use.lane.name: use for use in self._uses}
        self._root = self._by_name[ROOT_LANE]
        self._pieces: dict[str, _Piece] = {}
        self._sessions: dict[str, Session] = {}
        # (end, number, piece) of the turns under way.
        self._agenda: list[tuple[int, int, _Piece]] = []
        self._noted = 0
        self._last_end = 0
        self._next_order = load.arrivals.ordered + 1
        self._messages = 0
        rates = ProviderRates(load.requests_per_minute, load.tokens_per_minute)
        limited = rates.requests_per_minute or rates.tokens_per_minute
        self._limiter = Limiter("", rates) if limited else None
        self._calls = 0
        self._waiting: dict[str, _Piece] = {}
        self._tally = tally(self._uses, load.lanes[ROOT_LANE])
        self._turn = self._timer(load.turn_time, Draw.TURN)
        children = load.children
        self._per_turn = children.per_turn if children else 0
        self._background = bool(children and children.background)
        self._child = self._timer(children.time, Draw.CHILD) if children else None
        self._closing = (
            self._timer(children.closing_time, Draw.CLOSING_TURN)
            if children and children.closing_time
            else None
        )

    def _timer(self, times: Times, purpose: Draw) -> Callable[[int], int]:
        if isinstance(times, Fixed):
            time = times.time
            return lambda number: time
        chance = self._chance
        return lambda number: times.at(chance(purpose, number))

    def play(self) -> Tally:
        tally, arrivals = self._tally, self._load.arrivals.play(self._chance)
        arrival = next(arrivals, None)
        agenda, limiter, pieces = self._agenda, self._limiter, self._pieces
        last, pop = 0, heapq.heappop
        while True:
            now = agenda[0][0] if agenda else _NEVER
            if arrival is not None and arrival.at < now:
                now = arrival.at
            if self._waiting and limiter is not None:
                now = min(now, max(last, limiter.next_time() or _NEVER))
            if now == _NEVER:
                break
            last = now
            while agenda and agenda[0][0] == now:
                piece = pop(agenda)[2]
                if piece.step != _FIRST or self._per_turn or piece.session is not None:
                    self._turn_ended(piece, now)
                    continue
                # As `_turn_ended` for what a million of a load may be, in fewer steps.
                piece.use.lane.running -= 1
                del pieces[piece.run_id]
                tally.ended(piece.customer, piece.create_time, now)
            if arrival is not None and arrival.at == now:
                arrival = self._take_in(arrival, arrivals, now)
            if self._waiting and limiter is not None:
                self._released(limiter, now)
            self._fill_slots(now)
        tally.makespan = self._last_end
        tally.trim()
        tally.unfinished = len(pieces) + sum(piece.more for piece in pieces.values())
        return tally

    # -- Arrivals ---------------------------------------------------------------------------------

    def _take_in(self, arrival: Arrival, rest: Iterator[Arrival], now: int) -> Arrival | None:
        found: Arrival | None = arrival
        tally, root, turn, pieces = self._tally, self._root, self._turn, self._pieces
        push = root.queue.push
        while found is not None and found.at == now:
            customer, key, count = found.customer, found.customer_key, found.messages
            number, self._messages = self._messages, self._messages + count
            order = found.order
            if not order:
                order, self._next_order = self._next_order, self._next_order + 1
            tally.arrived(customer, now, count)
            # Without a session lane a customer sends one message: its key tells runs apart.
            run_id = str(order) if found.session_key else key
            pieces[run_id] = piece = _Piece(
                run_id,
                key,
                now,
                order,
                found.priority,
                customer,
                number,
                _FIRST,
                root,
                found.turn_time or turn(number),
                now,
                now,
            )
            if found.session_key:
                self._join_session(piece, found, now)
            else:
                root.waiting += 1
                push(piece)
            found = next(rest, None)
        return found

    def _join_session(self, piece: _Piece, arrival: Arrival, now: int) -> None:
        piece.more, piece.stride = arrival.messages - 1, arrival.stride
        session = self._sessions.get(arrival.session_key)
        if session is None:
            session = self._sessions[arrival.session_key] = Session(arrival.session_key)
        piece.session = session
        session.unfinished += arrival.messages
        session.add_fresh(piece.order, piece.run_id)
        self._refresh(session, now)

    def _follow_up(self, piece: _Piece) -> None:
        """The next message of a session that got several at once takes its place in the line."""
        session = piece.session
        assert session is not None
        order = piece.order + piece.stride
        number = piece.number + 1
        following = _Piece(
            str(order),
            piece.customer_key,
            piece.create_time,
            order,
            piece.priority,
            piece.customer,
            number,
            _FIRST,
            piece.use,
            self._turn(number),
            piece.create_time,
            piece.create_time,
        )
        following.session, following.stride = session, piece.stride
        following.more, piece.more = piece.more - 1, 0
        self._pieces[following.run_id] = following
        session.add_fresh(order, following.run_id)

    # -- Lanes ------------------------------------------------------------------------------------

    def _queue(self, piece: _Piece, now: int) -> None:
        """The piece has a turn to do; it stands in line as soon as its session lets it."""
        piece.state, piece.queued_since = _QUEUED, now
        if piece.session is None:
            piece.ready_since = now
            piece.use.push(piece)
        else:
            self._refresh(piece.session, now)

    def _refresh(self, session: Session, now: int) -> None:
        """As `Kernel.refresh`: only the session's next run stands in a ready queue."""
        run_id = session.next_run()
        piece = self._pieces[run_id] if run_id else None
        if piece is None or piece.state != _QUEUED:
            run_id = ""
        if session.ready == run_id:
            return
        if session.ready:
            self._pieces[session.ready].use.remove(session.ready)
        session.ready = run_id
        if piece is not None and run_id:
            piece.ready_since = now
            piece.use.push(piece)

    def _fill_slots(self, now: int) -> None:
        pieces = self._pieces
        ready = [use for use in self._uses if use.waiting and use.lane.running < use.lane.limit]
        while ready:
            if len(ready) == 1:
                [use] = ready
                lane, pop = use.lane, use.queue.pop
                while use.waiting and lane.running < lane.limit:
                    use.waiting -= 1
                    self._take(pieces[pop()], now)
                break
            for use in ready:
                self._take(pieces[use.pop()], now)
            ready = [use for use in ready if use.waiting and use.lane.running < use.lane.limit]
        for use in self._uses:
            if use.waiting > use.peak_waiting:
                use.peak_waiting = use.waiting

    # -- Turns ------------------------------------------------------------------------------------

    def _take(self, piece: _Piece, now: int) -> None:
        """A slot is free for the piece: its turn begins, or the provider makes it wait."""
        use, tally, session = piece.use, self._tally, piece.session
        use.waited += now - piece.ready_since
        if session is not None:
            session.ready = ""
            session.drop(piece)
            session.holder = piece.run_id
            tally.session_wait += piece.ready_since - piece.queued_since
            if piece.more:
                self._follow_up(piece)
        piece.resumed = True
        start = now if self._limiter is None else self._ask(self._limiter, piece, now)
        if start < now:
            return
        piece.state = _RUNNING
        end = start + piece.turn_time
        if end > self._last_end:
            self._last_end = end
        lane = use.lane
        lane.running += 1
        if lane.running > use.peak_running:
            use.peak_running = lane.running
        use.busy += end - now
        tally.turns += 1
        if piece.step == _FIRST:
            tally.started(piece.customer, piece.create_time, start, end)
        self._noted += 1
        heapq.heappush(self._agenda, (end, self._noted, piece))

    def _ask(self, limiter: Limiter, piece: _Piece, now: int) -> int:
        """When the provider allows the turn, soon enough to keep the slot; `_LATER` if it does not.

        As a worker: one request for the whole turn, a short wait in the slot, a longer one without.
        """
        call = piece.call
        if call is None:
            self._calls += 1
            call = Reservation(piece.run_id, "", self._calls, self._load.tokens_per_turn)
            limiter.reserve(call, now)
        else:
            limiter.start(call, now)
        if call.phase is Phase.WAITING:
            piece.state, piece.call, piece.queued_since = _WAITING, call, now
            self._waiting[call.id] = piece
            return _LATER
        piece.call = None
        if call.time > now:
            self._tally.held_up(call.limit, call.time - now)
        return max(now, call.time)

    def _released(self, limiter: Limiter, now: int) -> None:
        """Turns that the provider allows now stand in line for a slot."""
        while (call := limiter.release(now)) is not None:
            piece = self._waiting.pop(call.id)
            self._tally.held_up(call.limit, now - piece.queued_since)
            self._queue(piece, now)

    def _turn_ended(self, piece: _Piece, now: int) -> None:
        if piece.step == _FIRST and self._per_turn:
            self._spawn(piece, now)
            return
        piece.use.lane.running -= 1
        if piece.step == _CHILD:
            del self._pieces[piece.run_id]
            parent = piece.parent
            assert parent is not None
            parent.live -= 1
            if not parent.live:
                self._settled(parent, now)
        else:
            self._finish(piece, now)

    def _spawn(self, piece: _Piece, now: int) -> None:
        """The end of a first turn with children: they are queued, and the parent waits."""
        children, child_time = self._load.children, self._child
        assert children is not None
        assert child_time is not None
        use = self._by_name[children.lane]
        for index in range(self._per_turn):
            order, self._next_order = self._next_order, self._next_order + 1
            child = _Piece(
                f"child-{order}",
                piece.customer_key,
                now,
                order,
                piece.priority,
                piece.customer,
                piece.number,
                _CHILD,
                use,
                child_time(piece.number * self._per_turn + index),
                now,
                now,
            )
            child.parent = piece
            self._pieces[child.run_id] = child
            use.push(child)
        self._tally.children += self._per_turn
        piece.live, piece.state, piece.step = self._per_turn, _WAITING, _CLOSING
        piece.use.lane.running -= 1
        if self._background:
            self._tally.replied(piece.customer, now)
            if piece.session is not None:
                piece.session.drop(piece)
                self._refresh(piece.session, now)

    def _settled(self, piece: _Piece, now: int) -> None:
        """The last child of the piece has ended."""
        if self._closing is None:
            self._finish(piece, now)
            return
        piece.turn_time = self._closing(piece.number)
        session = piece.session
        if session is not None and session.holder != piece.run_id:
            session.returning.append(piece.run_id)
        self._queue(piece, now)

    def _finish(self, piece: _Piece, now: int) -> None:
        """The flow has ended."""
        del self._pieces[piece.run_id]
        self._tally.ended(piece.customer, piece.create_time, now)
        session = piece.session
        if session is None:
            return
        session.unfinished -= 1
        if session.holder == piece.run_id:
            session.holder = ""
            self._refresh(session, now)
        if not session.unfinished:
            del self._sessions[session.key]

"""Provider limits: when each model call may go, and what a refusal by the provider changes.

One `Limiter` per provider and credential (and model, when the configuration says so). It spaces
calls with the generic cell rate algorithm, once for requests and once for tokens, and keeps those
that have to wait in the order in which they asked. Only the first of them has a moment of its own;
the others follow when it has gone. So nobody wakes in herds, nobody overtakes, and whatever moves
the line (a cool-down, a late start, a call that used less than it reserved) moves all of it in one
step, however long it is.

**What a minute can see.** Requests have no burst: two calls are at least 61.2 s / N apart, so that
any 60 s, sliding or fixed, hold at most N. The 2 % are for calls that reach the provider a little
late; a start may be late by `SLACK`, a later one takes a new place. Tokens have a burst of 10 % of
the limit and drain at 90 % of it: any 60 s hold at most the limit while no single reservation is
above 10 % of it, and a greater one passes it by at most what it is greater. After a restart the
buckets are empty: the first call waits one interval.

**Cool-down.** A 429 stops the credential for as long as the provider asks, else 2 s, doubled with
every further one up to a minute. Then one waiting call goes as a probe; the rest follows when it is
answered. Trouble (5xx, no answer) pauses it too when it comes five times in a row, 1 s to 5 s, but
without a probe: a provider that is gone should be noticed, not waited for.
"""

from __future__ import annotations

import enum
import heapq

import msgspec

from scheduler_svc.domain.records import SECOND

# A minute with room for calls that reach the provider a little later than they should.
MINUTE = 61_200_000
TOKEN_BURST = 0.1
# A call that starts later than this after its reserved time takes a new place.
SLACK = SECOND // 4
# A worker waits this long itself; a longer wait gives the slot back.
SHORT_WAIT = 1 * SECOND
# A granted call is reported within this time, or it counts as used.
PATIENCE = 900 * SECOND
FIRST_COOL_DOWN = 2 * SECOND
LONGEST_COOL_DOWN = 60 * SECOND
# What a provider may ask for at most: a mistake in a header must not stop a credential for good.
LONGEST_ASKED = 3600 * SECOND
TROUBLES_BEFORE_PAUSE = 5
# Looks at reservations that were reported, which may always be there: they are seldom sorted out.
SPARE_EXPIRIES = 1000
# Places in a line that were left, in the same way.
SPARE_IN_LINE = 100
FIRST_PAUSE = 1 * SECOND
LONGEST_PAUSE = 5 * SECOND

REQUESTS = "requests_per_minute"
TOKENS = "tokens_per_minute"
COOL_DOWN = "cool_down"


class ProviderRates(msgspec.Struct, frozen=True):
    """What the configuration says about one provider. 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    # True counts every model on its own.
    per_model: bool = False


class Outcome(enum.IntEnum):
    """How a model call ended. Numbers of `CallOutcome`."""

    ANSWERED = 1
    THROTTLED = 2
    UNAVAILABLE = 3
    REJECTED = 4
    NOT_SENT = 5


class Phase(enum.StrEnum):
    """Where a reservation is."""

    WAITING = "waiting"
    # It may be used at its time; somebody has it or is being woken for it.
    GRANTED = "granted"
    # Nobody reported in time. It stays, as used, until its flow has ended.
    EXPIRED = "expired"


class Reservation(msgspec.Struct, omit_defaults=True):
    """One model call to come, or under way. Kept as a fact until it is reported."""

    id: str
    limiter: str
    # Order of arrival at the scheduler.
    number: int
    tokens: int
    cost: int = 0
    run_id: str = ""
    flow_id: str = ""
    phase: Phase = Phase.WAITING
    # The reserved time; an estimate while it waits.
    time: int = 0
    # What delays it: one of the names above, or nothing.
    limit: str = ""
    expire_time: int = 0
    # Runs whose budgets hold room for it: the run and its ancestors. Empty when nothing is capped.
    path: list[str] = []


class LimiterState(msgspec.Struct, omit_defaults=True):
    """What a limiter keeps over a restart. Times are the scheduler's."""

    # Until then the calls granted so far fill the rates.
    requests_until: int = 0
    tokens_until: int = 0
    # The newest grant: its place can move when it starts late.
    newest: str = ""
    cool_until: int = 0
    cool_for: int = 0
    # 429s in a row. Above 0, only a probe may go.
    throttles: int = 0
    probe: str = ""
    # Calls in a row that met trouble.
    troubles: int = 0


class Rate:
    """Generic cell rate algorithm for calls of different sizes. Times in, times out; no state."""

    __slots__ = ("burst", "per_minute")

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute = per_minute
        self.burst = burst

    def cost(self, units: float) -> int:
        """How long `units` fill the rate."""
        return -int(-units * MINUTE // self.per_minute)

    def earliest(self, until: int, units: int) -> int:
        """When `units` may go, given that the rate is full until then. One above the burst waits
        until nothing is left."""
        return until - max(0, self.cost(self.burst) - self.cost(units))

    def after(self, until: int, units: int, time: int) -> int:
        """Until when the rate is full once `units` went at `time`."""
        return max(until, time) + self.cost(units)


class Limiter:
    """The calls of one credential. See the module. Not thread safe; one owner."""

    def __init__(self, key: str, rates: ProviderRates, state: LimiterState | None = None) -> None:
        self.key = key
        self.state = state or LimiterState()
        rpm, tpm = rates.requests_per_minute, rates.tokens_per_minute
        self.requests = Rate(rpm, 1) if rpm else None
        self.tokens = Rate((1 - TOKEN_BURST) * tpm, TOKEN_BURST * tpm) if tpm else None
        self.waiting: dict[str, Reservation] = {}
        # By number; entries that wait no more are skipped.
        self._line: list[tuple[int, str]] = []
        self._line_tokens = 0

    @property
    def idle(self) -> bool:
        """True when a call without a limit to keep needs no record: nothing is counted here."""
        return not (self.requests or self.tokens or self.waiting or self.state.throttles)

    # -- Asking -----------------------------------------------------------------------------------

    def reserve(self, call: Reservation, now: int) -> None:
        """Gives a new call its time: granted when that is soon, else it waits in line."""
        time, limit = self._earliest(call.tokens, now)
        if not self.waiting and not self._probing and time <= now + SHORT_WAIT:
            self._grant(call, time)
            call.limit = limit if time > now else ""
        else:
            self.put_in_line(call, now)

    def put_in_line(self, call: Reservation, now: int) -> None:
        """Lets a call wait at its place, which is its number."""
        call.phase, call.expire_time = Phase.WAITING, 0
        call.time, call.limit = self._line_time(
            len(self.waiting), self._line_tokens, call.tokens, now
        )
        self.waiting[call.id] = call
        self._line_tokens += call.tokens
        heapq.heappush(self._line, (call.number, call.id))

    def drop(self, call_id: str) -> None:
        """Takes a waiting call out of the line."""
        call = self.waiting.pop(call_id, None)
        if call is not None:
            self._line_tokens -= call.tokens
        if len(self._line) > 2 * len(self.waiting) + SPARE_IN_LINE:
            self._line = sorted((c.number, c.id) for c in self.waiting.values())
        elif not self.waiting:
            self._line.clear()

    # -- Going ------------------------------------------------------------------------------------

    def next_time(self) -> int | None:
        """When the first in line may go; `None` when nobody waits, or a probe is under way."""
        first = self._first()
        if first is None or self._probing:
            return None
        return self._earliest(first.tokens, 0)[0]

    def release(self, now: int) -> Reservation | None:
        """Grants the first in line when its time has come."""
        time = self.next_time()
        if time is None or time > now:
            return None
        first = self._first()
        assert first is not None
        self.drop(first.id)
        # Looked at late, but within the slack, it keeps its time: no capacity is lost.
        self._grant(first, time if now - time <= SLACK else now)
        return first

    def start(self, call: Reservation, now: int) -> None:
        """A granted call is about to be made by the run that waited for it.

        One that is late takes a new place: at once, when no other was granted since, or soon, or
        at the head of the line.
        """
        state = self.state
        stopped = state.throttles and state.probe != call.id
        late = now - call.time
        if not stopped and (late <= SLACK or not (self.requests or self.tokens)):
            return
        if not stopped and state.newest == call.id:
            state.requests_until += late
            state.tokens_until += late
            call.time, call.expire_time = now, now + PATIENCE
            return
        time, limit = self._earliest(call.tokens, now)
        if self._probing or time > now + SHORT_WAIT:
            self.put_in_line(call, now)
            call.time = time  # its number makes it the first
        else:
            self._grant(call, time)
            call.limit = limit

    # -- Hearing ----------------------------------------------------------------------------------

    def report(
        self, call: Reservation | None, outcome: Outcome, tokens: int, asked: int, now: int
    ) -> None:
        """Learns how a call ended. `asked` is the provider's own `Retry-After`, 0 for none."""
        state = self.state
        probe = call is not None and state.probe == call.id
        if probe:
            state.probe = ""
        if call is not None and self.tokens is not None and outcome is not Outcome.UNAVAILABLE:
            state.tokens_until += self.tokens.cost(tokens) - self.tokens.cost(call.tokens)
        match outcome:
            case Outcome.THROTTLED:
                self._throttled(probe, asked, now)
            case Outcome.UNAVAILABLE:
                state.troubles += 1
                over = state.troubles - TROUBLES_BEFORE_PAUSE
                if over >= 0:
                    self._cool(min(FIRST_PAUSE << min(over, 16), LONGEST_PAUSE), now)
            case Outcome.NOT_SENT:
                if call is not None and state.newest == call.id and self.requests is not None:
                    state.requests_until -= self.requests.cost(1)
            case _:
                state.troubles = 0
                if probe:  # not for an answer to what was asked before the refusal
                    state.throttles = 0

    def abandon(self, call: Reservation) -> None:
        """Nobody will say how a granted call ended. If it was the probe, the next one is."""
        if self.state.probe == call.id:
            self.state.probe = ""

    def expected(self, call: Reservation, now: int) -> int:
        """When a waiting call is going to be granted, as far as one can say."""
        ahead = [c for c in self.waiting.values() if c.number < call.number]
        return self._line_time(len(ahead), sum(c.tokens for c in ahead), call.tokens, now)[0]

    def settle_after_restart(self, now: int) -> None:
        """Makes times of an earlier life, perhaps by another clock, safe ones of this life."""
        state = self.state
        state.cool_until = min(state.cool_until, now + state.cool_for)
        for rate, name in ((self.requests, "requests_until"), (self.tokens, "tokens_until")):
            if rate is None:
                continue
            # Empty: what was full stays so, but not for longer than it can be.
            full = min(getattr(state, name), now + MINUTE)
            setattr(state, name, max(full, now + rate.cost(rate.burst)))

    # -- Inside -----------------------------------------------------------------------------------

    @property
    def _probing(self) -> bool:
        return bool(self.state.throttles and self.state.probe)

    def _first(self) -> Reservation | None:
        while self._line:
            number, call_id = self._line[0]
            call = self.waiting.get(call_id)
            if call is not None and call.number == number:
                return call
            heapq.heappop(self._line)
        return None

    def _grant(self, call: Reservation, time: int) -> None:
        state = self.state
        if self.requests is not None:
            state.requests_until = self.requests.after(state.requests_until, 1, time)
        if self.tokens is not None:
            state.tokens_until = self.tokens.after(state.tokens_until, call.tokens, time)
        state.newest = call.id
        if state.throttles:
            state.probe = call.id
        call.phase, call.time, call.expire_time = Phase.GRANTED, time, time + PATIENCE

    def _earliest(self, tokens: int, now: int) -> tuple[int, str]:
        found = [(now, ""), (self.state.cool_until, COOL_DOWN)]
        if self.requests is not None:
            found.append((self.requests.earliest(self.state.requests_until, 1), REQUESTS))
        if self.tokens is not None:
            found.append((self.tokens.earliest(self.state.tokens_until, tokens), TOKENS))
        return max(found)

    def _line_time(self, ahead: int, tokens: int, own: int, now: int) -> tuple[int, str]:
        state, base = self.state, max(now, self.state.cool_until)
        found = [(base, COOL_DOWN)]
        if self.requests is not None:
            until = max(state.requests_until, base if ahead else 0) + self.requests.cost(ahead)
            found.append((self.requests.earliest(until, 1), REQUESTS))
        if self.tokens is not None:
            until = max(state.tokens_until, base if tokens else 0) + self.tokens.cost(tokens)
            found.append((self.tokens.earliest(until, own), TOKENS))
        return max(found)

    def _throttled(self, probe: bool, asked: int, now: int) -> None:
        state = self.state
        # Calls that were under way together fail together: that is one refusal, not many.
        if probe or state.cool_until <= now or not state.throttles:
            state.throttles += 1
        pause = min(asked, LONGEST_ASKED)
        if not asked or state.throttles > 1:
            own = FIRST_COOL_DOWN << min(state.throttles - 1, 16)
            pause = max(pause, min(own, LONGEST_COOL_DOWN))
        self._cool(pause, now)

    def _cool(self, pause: int, now: int) -> None:
        if now + pause > self.state.cool_until:
            self.state.cool_until, self.state.cool_for = now + pause, pause


class Limits:
    """All limiters and outstanding reservations, and what those hold of budgets. State only."""

    def __init__(self, rates: dict[str, ProviderRates]) -> None:
        self._rates = rates
        self.limiters: dict[str, Limiter] = {}
        self.reservations: dict[str, Reservation] = {}
        # Flow id -> its outstanding reservations.
        self.of_flow: dict[str, set[str]] = {}
        self.next_number = 1
        # Run id -> tokens and cost that reservations of its tree hold.
        self._held: dict[str, tuple[int, int]] = {}
        self._expiries: list[tuple[int, str]] = []

    def rates(self, provider_id: str) -> ProviderRates:
        """What the configuration says about a provider."""
        return self._rates.get(provider_id, ProviderRates())

    def key(self, provider_id: str, credential_id: str, model: str) -> str:
        """Which limiter a call belongs to."""
        key = f"{provider_id}/{credential_id}"
        return f"{key}/{model}" if self.rates(provider_id).per_model else key

    def limiter(self, key: str, state: LimiterState | None = None) -> Limiter:
        """The limiter, made when it is first needed, or with the state of an earlier life."""
        found = self.limiters.get(key)
        if found is None:
            rates = self.rates(key.partition("/")[0])
            found = self.limiters[key] = Limiter(key, rates, state)
        return found

    def add(self, call: Reservation) -> None:
        """Takes in an outstanding reservation."""
        self.reservations[call.id] = call
        if call.flow_id:
            self.of_flow.setdefault(call.flow_id, set()).add(call.id)
        self.next_number = max(self.next_number, call.number + 1)

    def remove(self, call: Reservation) -> None:
        """Forgets a reservation."""
        self.limiters[call.limiter].drop(call.id)
        del self.reservations[call.id]
        if call.flow_id:
            self.of_flow[call.flow_id].discard(call.id)
            if not self.of_flow[call.flow_id]:
                del self.of_flow[call.flow_id]

    def turn_over(
        self, flow_id: str, run_id: str, keep: str
    ) -> tuple[list[Limiter], list[Reservation]]:
        """A turn has ended: what it was granted and did not report it will not report any more,
        and what it did not stay to wait for leaves the line.

        `keep` is the reservation that the next turn resumes with. Returns what limiters changed,
        and what is gone.
        """
        changed: list[Limiter] = []
        gone: list[Reservation] = []
        for reservation_id in sorted(self.of_flow.get(flow_id, ())):
            call = self.reservations[reservation_id]
            if call.run_id != run_id or call.id == keep:
                continue
            limiter = self.limiters[call.limiter]
            if call.phase is Phase.WAITING:
                self.remove(call)
                for holder in call.path:
                    self.hold(holder, -call.tokens, -call.cost)
                gone.append(call)
            elif limiter.state.probe == call.id:
                limiter.abandon(call)
                changed.append(limiter)
        return changed, gone

    def expires(self, call: Reservation) -> None:
        """Notes that a granted reservation is looked at when its time is over."""
        if len(self._expiries) > 2 * len(self.reservations) + SPARE_EXPIRIES:
            self._expiries = [e for e in self._expiries if e[1] in self.reservations]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (call.expire_time, call.id))

    def expired(self, now: int) -> list[Reservation]:
        """Granted reservations that nobody reported in time; they are marked as such."""
        found = []
        while self._expiries and self._expiries[0][0] <= now:
            time, call_id = heapq.heappop(self._expiries)
            call = self.reservations.get(call_id)
            # One that took a later place has been noted again for it.
            if call is not None and call.phase is Phase.GRANTED and call.expire_time == time:
                call.phase = Phase.EXPIRED
                found.append(call)
        return found

    def next_time(self) -> int | None:
        """When something is due."""
        times = [time for lim in self.limiters.values() if (time := lim.next_time()) is not None]
        if self._expiries:
            times.append(self._expiries[0][0])
        return min(times) if times else None

    def held(self, run_id: str) -> tuple[int, int]:
        """Tokens and cost that reservations hold of a run's budget."""
        return self._held.get(run_id, (0, 0))

    def hold(self, run_id: str, tokens: int, cost: int) -> None:
        """Adds to what is held; gives back with negative figures."""
        held_tokens, held_cost = self.held(run_id)
        self._held[run_id] = (held_tokens + tokens, held_cost + cost)
        if self._held[run_id] == (0, 0):
            del self._held[run_id]

"""A random world of writers around the fold, and what must hold in it whatever happens.

Goal: find out whether the rules of eventstore/fold.py are enough, and whether each is needed.
Method: writers of every kind run as generators that a seeded scheduler lets step in any order. What
they send travels over connections that keep the order, but may lose an event, deliver a lost one
much later, deliver one twice, or lose the acknowledgement. Readers see the log from behind, each
from its own place; processors crash, and the crashed ones sometimes live on beside their
successors. Every event is judged as it lands: a diff must have been made on exactly what it says
it read, a request must be closed once and in the order of its lane, and so on. In the end nothing
that was acknowledged may be missing.

`run(seed)` returns a `Report`. The fold, the rows below it and the habits of the writers can be
exchanged: take a rule out of any of them, and the report says what went wrong.
"""

from __future__ import annotations

import random
import traceback
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from eventstore.events import (
    Answer,
    Copied,
    EffectKey,
    Event,
    ForkOf,
    Guard,
    Kind,
    RequestPolicy,
    Source,
    Verdict,
)
from eventstore.fold import fold as the_fold
from eventstore.rows import Pending
from tests.property.dict_rows import DictRows, Fold

__all__ = ["STORM", "Habits", "Report", "Weather", "run"]

FIELDS: Final = ("a", "b", "c", "d", "e")
LANES: Final = ("left", "right")
#: The first of the two is watched by triggers, which make requests in the second.
WATCHED, TARGET = "i0", "i1"
#: A diff that touches this field of the watched instance wakes the triggers.
WATCHED_FIELD: Final = "a"
TRIGGERS: Final = ("trigger/1", "trigger/2")
#: Steps of the scheduler after which a world that has not come to rest is given up.
STEPS_MAX: Final = 40_000
ALL: Final = 10**9

Steps = Generator[None, None, None]


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How the writers behave. The defaults are right; each other value is a mistake to be shown."""

    #: Base of a chain's later steps: what was read, or what it is hoped to be by then.
    predicts_versions: bool = False
    #: Go on with the result that the fold accepted, or with one's own.
    trusts_own_effects: bool = False
    #: Leave the arguments out of an effect's identity.
    effects_without_arguments: bool = False
    #: Each part of an answer is a chain of its own, instead of one chain for the attempt.
    parts_without_chain: bool = False
    #: A trigger's cursor moves on before its requests are acknowledged.
    cursor_first: bool = False
    #: A commit carries a key, so that a copy of it is known.
    commits_with_key: bool = True
    #: Share of pipeliners that leave a chain as soon as they see one of its steps refused.
    impatient: float = 0.5
    #: Share of processors that go on before they see a verdict, and that chain answers blindly.
    hasty: float = 0.3
    eager: float = 0.3


class Weather(NamedTuple):
    """What the network and the machines do: shares of events and of steps.

    An event is lost (and sometimes lands late), its acknowledgement is lost, a copy of it lands
    late; a processor crashes.
    """

    loss: float
    lost_acknowledgements: float
    copies: float
    crashes: float


#: What rare mistakes need to show themselves soon.
STORM: Final = Weather(0.15, 0.2, 0.3, 0.03)


class Report(NamedTuple):
    """What came of a world: what went wrong (nothing, one hopes), and how much happened in it."""

    seed: int
    wrong: Counter[str]
    verdicts: Counter[Verdict]
    #: Where the fold failed, if it did.
    trace: str


# --- what is sent --------------------------------------------------------------------------------


class Call(NamedTuple):
    """An external call that an answer relies on: its identity, what it was given, from where.

    A result is a list of something and of what the call was given when it was made.
    """

    key: EffectKey
    result: Any
    field: str
    given: Any


@dataclass(slots=True)
class Letter:
    """An event, and what its writer had in mind, which the fold never sees."""

    event: Event
    write: int = 0
    reads: dict[str, Any] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    touched: frozenset[str] = frozenset()
    parts: int = 1
    newer_max: int = 0
    state: dict[str, Any] | None = None


@dataclass(slots=True)
class Delivery:
    """What a sender learns: nothing yet, the offset, or that nobody knows."""

    offset: int | None = None
    unknown: bool = False

    @property
    def settled(self) -> bool:
        return self.unknown or self.offset is not None


Connection = deque[tuple[str, Letter, Delivery]]


class Seen(NamedTuple):
    """An instance as of one offset, as a reader sees it."""

    version: int
    state: dict[str, Any]
    waiting: tuple[Pending, ...]
    #: (request, call) -> result.
    results: dict[tuple[int, EffectKey], Any]
    sources: dict[str, tuple[int, int]]
    requested: tuple[tuple[int, str], ...]

    def request(self, sequence: int) -> Pending | None:
        return next((one for one in self.waiting if one.sequence == sequence), None)


class Place:
    """One instance: its log, what the fold made of it, and what readers saw at each offset."""

    def __init__(self, rows: DictRows) -> None:
        self.rows = rows
        self.letters: list[Letter] = []
        self.seen = [Seen(0, {}, (), {}, {}, ())]

    @property
    def end(self) -> int:
        return len(self.letters)

    def verdict(self, offset: int) -> Verdict:
        return self.rows.history[offset].outcome.verdict

    def append(self, letter: Letter) -> None:
        before, outcome = self.seen[-1], self.rows.take(letter.event)
        self.letters.append(letter)
        waiting, results, requested = before.waiting, before.results, before.requested
        if outcome.opened or outcome.advanced or outcome.closed:
            waiting = tuple(self.rows.waiting.values())
        if outcome.opened:
            requested = (*requested, (outcome.opened.sequence, outcome.opened.lane))
        if outcome.effect:
            event = letter.event
            assert event.answer is not None
            assert event.effect is not None
            result = orjson.loads(event.body)
            results = {**results, (event.answer.cause, event.effect): result}
        sources = before.sources if outcome.source is None else dict(self.rows.sources)
        after = Seen(
            self.rows.version, self.rows.state(), waiting, results, sources, requested
        )  # fmt: skip
        self.seen.append(after)


# --- the world -----------------------------------------------------------------------------------


class World:
    """The network, the logs and the judge. Writers are generators that step when they are told."""

    def __init__(
        self,
        seed: int,
        fold: Fold,
        habits: Habits,
        rows: Callable[[Fold], DictRows],
        weather: Weather | None,
    ) -> None:
        self.random = random.Random(seed)
        self.habits = habits
        self.places: dict[str, Place] = {}
        self.names = [WATCHED, TARGET]
        self._fold, self._rows = fold, rows
        self.connections: list[Connection] = []
        self.stray: list[tuple[str, Letter]] = []  # copies that land some time later
        self.actors: list[Steps] = []
        self.cursors: dict[str, int] = {}
        self.weather = weather or Weather(
            loss=self.random.choice((0, 0.02, 0.06)),
            lost_acknowledgements=self.random.choice((0, 0.03, 0.1)),
            copies=self.random.choice((0, 0.03, 0.1)),
            crashes=self.random.choice((0, 0.01, 0.03)),
        )
        self.judge = Judge()
        self._id = 0
        for name in self.names:
            self.place(name)

    def place(self, name: str) -> Place:
        if name not in self.places:
            self.places[name] = Place(self.new_rows())
        return self.places[name]

    def new_rows(self) -> DictRows:
        return self._rows(self._fold)

    def new_id(self) -> int:
        self._id += 1
        return self._id

    def new_write(self) -> int:
        """Return a number for something that must take effect exactly once."""
        write = self.new_id()
        self.judge.expected.add(write)
        return write

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    # --- the network ------------------------------------------------------------------------------

    def send(self, connection: Connection, name: str, letter: Letter) -> Delivery:
        delivery = Delivery()
        if not connection:
            self.connections.append(connection)
        connection.append((name, letter, delivery))
        return delivery

    def deliver(self) -> None:
        """Let the network do one thing."""
        if self.stray and (not self.connections or self.chance(0.2)):
            self._land(*self.stray.pop(self.random.randrange(len(self.stray))))
            return
        if not self.connections:
            return
        number = self.random.randrange(len(self.connections))
        connection = self.connections[number]
        name, letter, delivery = connection.popleft()
        if not connection:
            self.connections[number] = self.connections[-1]
            self.connections.pop()
        if self.chance(self.weather.loss):
            delivery.unknown = True
            if self.chance(0.4):
                self.stray.append((name, letter))
            return
        offset = self._land(name, letter)
        if self.chance(self.weather.lost_acknowledgements):
            delivery.unknown = True
        else:
            delivery.offset = offset
        if self.chance(self.weather.copies):
            self.stray.append((name, letter))

    def _land(self, name: str, letter: Letter) -> int:
        place = self.place(name)
        place.append(letter)
        self.judge.event(name, place)
        return place.end - 1


class Judge:
    """What must hold. It reads the verdicts and what the writers had in mind; `wrong` counts."""

    def __init__(self) -> None:
        self.wrong: Counter[str] = Counter()
        self.verdicts: Counter[Verdict] = Counter()
        self.expected: set[int] = set()
        #: Writes that did not fit, as their writers know.
        self.given_up: set[int] = set()
        self._applied: Counter[int] = Counter()
        self._effects: Counter[tuple[str, int, EffectKey]] = Counter()
        self._requests: dict[tuple[str, int], Letter] = {}
        self._closings: Counter[tuple[str, int]] = Counter()
        self._parts: dict[tuple[str, int], list[int]] = {}
        self._last_closed: dict[tuple[str, str], int] = {}
        self._triggered: Counter[tuple[str, int]] = Counter()

    def event(self, name: str, place: Place) -> None:
        """Judge the event that landed last."""
        letter, outcome = place.letters[-1], place.rows.history[-1].outcome
        before, after = place.seen[-2], place.seen[-1]
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict != Verdict.ACCEPTED:
            if (before.version, before.state) != (after.version, after.state):
                self.wrong["a refused event changes something"] += 1
            return
        kind, answer = letter.event.kind, letter.event.answer
        if kind == Kind.DIFF:
            self._diff(letter, before, after, given_up=outcome.floor is not None)
        elif kind == Kind.REQUEST:
            self._requests[name, place.end - 1] = letter
        elif kind == Kind.RESET:
            self._reset(name, letter, before, after)
        elif kind == Kind.FORK:
            self._fork(letter, before, after)
        elif kind == Kind.EFFECT:
            assert answer is not None
            assert letter.event.effect is not None
            recorded = (name, answer.cause, letter.event.effect)
            self._effects[recorded] += 1
            if self._effects[recorded] > 1:
                self.wrong["an effect is recorded twice"] += 1
        if letter.event.source is not None:
            self._triggered[letter.event.source.id, letter.event.source.number[0]] += 1
        elif letter.write:
            self._applied[letter.write] += 1
            if self._applied[letter.write] > 1:
                self.wrong["a write counts twice"] += 1
        if answer is not None:
            self._answer(name, letter, answer, before)

    def _diff(self, letter: Letter, before: Seen, after: Seen, *, given_up: bool) -> None:
        for what, value in letter.reads.items():
            found = before.state if what == "*" else before.state.get(what)
            if found != value:
                self.wrong["a diff counts on a state that its writer did not read"] += 1
        # The diff that comes in place of a fork's next part also clears what had come of it.
        if after.version != before.version + 1 + given_up:
            self.wrong["a diff does not make one version"] += 1
        if after.state != applied(before.state, orjson.loads(letter.event.body)):
            self.wrong["the state is not what the operations say"] += 1
        for call in letter.calls:
            if before.state.get(call.field) != call.result[1]:
                self.wrong["an answer relies on a call with other arguments"] += 1
            assert letter.event.answer is not None
            known = before.results.get((letter.event.answer.cause, call.key))
            if known != call.result:
                self.wrong["an answer relies on a result that is not recorded"] += 1

    def _reset(self, name: str, letter: Letter, before: Seen, after: Seen) -> None:
        if after.version != before.version + 1:
            self.wrong["a reset does not make one version"] += 1
        if after.state or after.waiting:
            self.wrong["a reset leaves something"] += 1
        for request in before.waiting:
            self._closings[name, request.sequence] += 1

    def _fork(self, letter: Letter, before: Seen, after: Seen) -> None:
        fork = letter.event.fork
        assert fork is not None
        if before.version:
            self.wrong["a fork counts on an instance that exists"] += 1
        if fork.part + 1 < fork.parts:
            if after.version or after.state:
                self.wrong["half a fork can be seen"] += 1
        elif after.version != 1 or after.state != letter.state:
            self.wrong["a fork does not make the state that it carries"] += 1

    def _answer(self, name: str, letter: Letter, answer: Answer, before: Seen) -> None:
        event, request = letter.event, (name, answer.cause)
        if event.kind == Kind.DIFF:
            self._parts.setdefault(request, []).append(answer.part)
        if not answer.closes:
            return
        self._closings[request] += 1
        if self._closings[request] > 1:
            self.wrong["a request is closed twice"] += 1
        asked = self._requests[request]
        policy = asked.event.request
        assert policy is not None
        if event.kind == Kind.DIFF and self._parts[request] != list(range(asked.parts)):
            self.wrong["an answer is closed without all of its parts in order"] += 1
        if event.kind in (Kind.DIFF, Kind.FAILURE) and policy.not_before_ms is None:
            lane = (name, policy.lane)
            waiting = (one.sequence for one in before.waiting if in_order(one, policy.lane))
            if self._last_closed.get(lane, -1) > answer.cause or min(waiting) < answer.cause:
                self.wrong["a lane is answered out of order"] += 1
            self._last_closed[lane] = max(self._last_closed.get(lane, -1), answer.cause)

    def at_rest(self, world: World) -> None:
        """Judge the world after everything has arrived and every request is answered."""
        for write in self.expected - self.given_up:
            if not self._applied[write]:
                self.wrong["a write is lost"] += 1
        for write in self.given_up:
            if self._applied[write]:
                self.wrong["a write counts that its writer knows as rejected"] += 1
        for request in self._requests:
            if self._closings[request] != 1:
                self.wrong["a request is not closed once"] += 1
        for trigger in TRIGGERS:
            for offset in wake_ups(world.place(WATCHED), 0, world.place(WATCHED).end):
                if not self._triggered[trigger, offset]:
                    self.wrong["a trigger misses a change"] += 1

    def at_end(self) -> None:
        """Judge what holds at any time."""
        if any(count > 1 for count in self._triggered.values()):
            self.wrong["a trigger fires twice for one change"] += 1


def in_order(request: Pending, lane: str) -> bool:
    return request.lane == lane and request.due_ms is None


def wake_ups(place: Place, start: int, end: int) -> Iterator[int]:
    """Yield the offsets of the accepted diffs that touch the watched field."""
    for offset in range(start, end):
        letter = place.letters[offset]
        if WATCHED_FIELD in letter.touched and place.verdict(offset) == Verdict.ACCEPTED:
            yield offset


# --- reading and choosing ------------------------------------------------------------------------


class View:
    """One reader's place in the log of one instance."""

    def __init__(self, world: World, name: str, ahead_max: int = 0) -> None:
        self._world, self._place, self._offset = world, world.place(name), 0
        self.advance(world.random.randint(0, ahead_max) if ahead_max < ALL else ALL)

    def advance(self, count: int | None = None) -> None:
        if count is None:
            count = self._world.random.randint(0, 8)
        self._offset = min(self._place.end, self._offset + count)

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def seen(self) -> Seen:
        return self._place.seen[self._offset]

    def verdict(self, offset: int) -> Verdict | None:
        """Return the verdict of an event, None when this reader has not come to it.

        The verdict of a second copy is that of the first, which may have been rejected.
        """
        if offset >= self._offset:
            return None
        winner = self._place.rows.history[offset].outcome.winner
        if (
            self._place.verdict(offset) == Verdict.DUPLICATE
            and winner is not None
            and self._place.letters[winner].event == self._place.letters[offset].event
        ):
            return self._place.verdict(winner)
        return self._place.verdict(offset)

    def wait(self, offset: int) -> Generator[None, None, Verdict]:
        while (verdict := self.verdict(offset)) is None:
            self.advance()
            yield
        return verdict

    def letters(self) -> Iterator[tuple[Letter, Verdict]]:
        for offset in range(self._offset):
            yield self._place.letters[offset], self._place.verdict(offset)


class Choice(NamedTuple):
    """A diff that somebody thought of: operations, what they rest on, and what comes of them."""

    operations: list[list[Any]]
    guarded: set[str]
    reads: dict[str, Any]
    state: dict[str, Any]


def choose(world: World, state: dict[str, Any], write: int) -> Choice:
    """Think of a diff on `state`: read some fields, change one or two."""
    rng = world.random
    reads = {name: state.get(name) for name in rng.sample(FIELDS, rng.randint(0, 2))}
    guarded = set(reads)
    if world.chance(0.08):
        guarded.add("*")
        reads["*"] = state
    operations: list[list[Any]] = []
    for name in rng.sample(FIELDS, rng.randint(1, 2)):
        code = rng.choices(("append", "set", "delete", "text"), (54, 35, 7, 4))[0]
        if code == "append" and isinstance(state.get(name), str):
            code = "set"
        if code != "append":
            guarded.add(name)
            reads.setdefault(name, state.get(name))
        operations.append(operation(code, name, write))
    return Choice(operations, guarded, reads, applied(state, operations))


def operation(code: str, name: str, write: int) -> list[Any]:
    if code == "delete":
        return ["delete", name]
    if code == "append":
        return ["append", name, write]
    return ["set", name, str(write) if code == "text" else [write]]


def applied(state: dict[str, Any], operations: list[list[Any]]) -> dict[str, Any]:
    """Apply operations in the plainest way. Values are lists and texts, and never changed."""
    after = dict(state)
    for code, name, *arguments in operations:
        if code == "append":
            after[name] = [*after.get(name, []), *arguments]
        elif code == "set":
            after[name] = arguments[0]
        else:
            after.pop(name, None)
    return after


def touched(operations: list[list[Any]]) -> frozenset[str]:
    return frozenset(operation[1] for operation in operations)


# --- sending with care ---------------------------------------------------------------------------


class Sent(NamedTuple):
    letter: Letter
    delivery: Delivery


def send_surely(world: World, name: str, letter: Letter) -> Generator[None, None, int]:
    """Send an event again and again until its offset is known."""
    while True:
        delivery = world.send(deque(), name, letter)
        while not delivery.settled:
            yield
        if delivery.offset is not None:
            return delivery.offset


def settle(world: World, name: str, sent: list[Sent]) -> Steps:
    """Wait for a row of events; from the first unknown one on, send all of them again, in order."""
    while True:
        while not all(one.delivery.settled for one in sent):
            yield
        unknown = next((at for at, one in enumerate(sent) if one.delivery.unknown), None)
        if unknown is None:
            return
        connection: Connection = deque()
        for at in range(unknown, len(sent)):
            letter = sent[at].letter
            sent[at] = Sent(letter, world.send(connection, name, letter))


# --- writers -------------------------------------------------------------------------------------


def blind_writer(world: World, name: str) -> Steps:
    """Write without reading. When it does not fit, write something else, under another key."""
    write = world.new_write()
    code = world.random.choice(("append", "append", "set", "delete"))
    what = world.random.choice(FIELDS)
    first = _keyed(f"write {write}", write, [operation(code, what, write)])
    offset = yield from send_surely(world, name, first)
    verdict = yield from View(world, name).wait(offset)
    if verdict == Verdict.REJECTED:
        world.judge.given_up.add(write)
        other = world.new_write()
        second = _keyed(f"write {other}", other, [operation("set", what, other)])
        yield from send_surely(world, name, second)


def _keyed(key: str, write: int, operations: list[list[Any]], **more: Any) -> Letter:
    event = Event(Kind.DIFF, "", orjson.dumps(operations), idempotency_key=key, **more)
    return Letter(event, write, touched=touched(operations))


def committer(world: World, name: str) -> Steps:
    """Read, think, write guarded; after a conflict, all of it again."""
    write = world.new_write()
    view = View(world, name, ALL if world.chance(0.7) else 50)
    verdict = Verdict.CONFLICT
    while verdict == Verdict.CONFLICT:
        seen = view.seen
        choice = choose(world, seen.state, write)
        for _ in range(world.random.randint(0, 6)):
            yield
        guard = Guard(seen.version, tuple(sorted(choice.guarded)))
        letter = _keyed(f"write {write}", write, choice.operations, guard=guard)
        letter.reads = choice.reads
        if not world.habits.commits_with_key:
            letter.event = letter.event._replace(idempotency_key=None)
        offset = yield from send_surely(world, name, letter)
        verdict = yield from view.wait(offset)
    if verdict == Verdict.REJECTED:
        world.judge.given_up.add(write)


def pipeliner(world: World, name: str) -> Steps:
    """Write a row of steps, each on top of the one before, without waiting: one chain."""
    writes = [world.new_write() for _ in range(world.random.randint(2, 8))]
    impatient = world.chance(world.habits.impatient)
    view = View(world, name, ALL)
    done = 0
    while done < len(writes):
        seen, state = view.seen, view.seen.state
        chain = f"chain {world.new_id()}"
        connection: Connection = deque()
        sent: list[Sent] = []
        for index, write in enumerate(writes[done : done + world.random.randint(1, 6)]):
            choice = choose(world, state, write)
            state = choice.state
            base = seen.version + (index if world.habits.predicts_versions else 0)
            guard = Guard(base, tuple(sorted(choice.guarded)), chain, index)
            event = Event(Kind.DIFF, "", orjson.dumps(choice.operations), guard)
            letter = Letter(event, write, choice.reads, touched=touched(choice.operations))
            sent.append(Sent(letter, world.send(connection, name, letter)))
            if world.chance(0.5):
                yield
        refused = yield from _settle_impatiently(world, name, view, sent, impatient)
        if refused is None:
            refused = yield from _first_refused(view, sent)
            done += refused[0]
        else:
            # Some copies are still on their way. The chain is over, so none of them can count
            # any more, and what the view has now is the truth.
            done += _count_seen(view, chain)
        if refused[1] == Verdict.REJECTED:
            world.judge.given_up.add(sent[refused[0]].letter.write)
            done += 1
        view.advance(ALL if world.chance(0.5) else 3)


def _settle_impatiently(
    world: World, name: str, view: View, sent: list[Sent], impatient: bool
) -> Generator[None, None, tuple[int, Verdict] | None]:
    """Settle, or return (index, verdict) of a refused step as soon as the view shows one."""
    settling = settle(world, name, sent)
    for _ in settling:
        yield
        if impatient:
            view.advance()
            for index, (_, delivery) in enumerate(sent):
                verdict = None if delivery.offset is None else view.verdict(delivery.offset)
                if verdict in (Verdict.CONFLICT, Verdict.REJECTED):
                    return index, verdict
    return None


def _first_refused(view: View, sent: list[Sent]) -> Generator[None, None, tuple[int, Verdict]]:
    """Wait for the verdicts; return the first that refuses, or the end of the row."""
    for index, (_, delivery) in enumerate(sent):
        assert delivery.offset is not None
        verdict = yield from view.wait(delivery.offset)
        if verdict in (Verdict.CONFLICT, Verdict.REJECTED):
            return index, verdict
    return len(sent), Verdict.ACCEPTED


def _count_seen(view: View, chain: str) -> int:
    """Return how many steps of a chain count."""
    counted = 0
    for letter, verdict in view.letters():
        guard = letter.event.guard
        if guard is not None and guard.chain == chain and verdict == Verdict.ACCEPTED:
            counted = max(counted, guard.chain_index + 1)
    return counted


def requester(world: World, name: str) -> Steps:
    """Ask for something to be done."""
    write, rng = world.new_write(), world.random
    policy = RequestPolicy(lane=rng.choice(LANES), not_before_ms=1 if world.chance(0.1) else None)
    event = Event(Kind.REQUEST, "update", b"{}", request=policy, idempotency_key=f"write {write}")
    letter = Letter(
        event, write, parts=rng.choice((1, 1, 2, 3)), newer_max=rng.choice((0, 0, 1, 3))
    )
    yield from send_surely(world, name, letter)


# --- processors ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Attempt:
    """A chain of answers: what it read, and where it stands."""

    base: int
    state: dict[str, Any]
    chain: str
    index: int = 0


class Processor:
    """Answers the requests of one lane of one instance.

    A calm one waits for the verdict of each answer, a hasty one only for the acknowledgement, and
    an eager one goes on at once, on the state that its own answers will make if they count.
    """

    def __init__(self, world: World, name: str, lane: str) -> None:
        self._world, self._name, self._lane = world, name, lane
        self._view = View(world, name, ALL if world.chance(0.5) else 0)
        luck, habits = world.random.random(), world.habits
        self._hasty = luck < habits.hasty
        self._eager = habits.hasty <= luck < habits.hasty + habits.eager
        #: Requests believed to be answered -> offset of the answer; forgotten once it was seen.
        self._believed: dict[int, int] = {}
        self._attempt: Attempt | None = None

    def steps(self) -> Steps:
        while True:
            self._view.advance()
            yield
            self._look_at_beliefs()
            request = self._next()
            if request is not None:
                yield from self._answer(request)

    def _look_at_beliefs(self) -> None:
        for sequence, offset in list(self._believed.items()):
            if offset < self._view.offset:
                del self._believed[sequence]
                if self._view.seen.request(sequence) is not None:
                    self._attempt = None  # it did not count, and so nothing on top of it

    def _next(self) -> Pending | None:
        for request in self._view.seen.waiting:
            if request.lane == self._lane and request.sequence not in self._believed:
                if request.due_ms is not None and self._world.chance(0.7):
                    continue  # not due yet
                return request
        return None

    def _answer(self, request: Pending) -> Steps:
        world, seen, cause = self._world, self._view.seen, request.sequence
        asked = world.place(self._name).letters[cause]
        newer = sum(lane == self._lane and at > cause for at, lane in seen.requested)
        if asked.newer_max and newer >= asked.newer_max and world.chance(0.8):
            yield from self._close(Kind.DISCARD, cause)
        elif world.chance(0.02):
            yield from self._close(Kind.FAILURE, cause)
        else:
            if self._attempt is None:
                self._attempt = Attempt(seen.version, seen.state, f"attempt {world.new_id()}")
            calls = yield from self._call(request)
            if calls is None:
                self._attempt = None
            else:
                yield from self._write(request, asked.parts, calls)

    def _close(self, kind: Kind, cause: int) -> Steps:
        letter = Letter(Event(kind, "", b"{}", answer=Answer(cause, closes=True)))
        offset = yield from send_surely(self._world, self._name, letter)
        yield from self._view.wait(offset)
        self._attempt = None

    def _call(self, request: Pending) -> Generator[None, None, tuple[Call, ...] | None]:
        """Make the external calls of a request; None when it turns out to be closed."""
        assert self._attempt is not None
        world, cause, state = self._world, request.sequence, self._attempt.state
        plan = zlib.crc32(b"%d" % cause)
        calls = []
        for number in range(plan % 3):
            what = FIELDS[(plan >> (4 + 3 * number)) % len(FIELDS)]
            given = state.get(what)
            digest = "" if world.habits.effects_without_arguments else orjson.dumps(given).decode()
            key = EffectKey(number, digest)
            if self._view.seen.request(cause) is None:
                return None
            if (cause, key) not in self._view.seen.results:
                for _ in range(world.random.randint(0, 4)):
                    yield  # somebody far away thinks
                result = [f"result {world.new_id()}", given]
                event = Event(
                    Kind.EFFECT, "call", orjson.dumps(result), answer=Answer(cause), effect=key
                )
                offset = yield from send_surely(world, self._name, Letter(event))
                if world.habits.trusts_own_effects:
                    calls.append(Call(key, result, what, given))
                    continue
                yield from self._view.wait(offset)
                seen = self._view.seen
                if seen.request(cause) is None or (cause, key) not in seen.results:
                    return None
            calls.append(Call(key, self._view.seen.results[cause, key], what, given))
        return tuple(calls)

    def _write(self, request: Pending, parts: int, calls: tuple[Call, ...]) -> Steps:
        world, connection = self._world, Connection()
        sent: list[Sent] = []
        for part in range(request.parts, parts):
            answer = Answer(request.sequence, part, part == parts - 1)
            letter = self._part(answer, calls if part == request.parts else ())
            sent.append(Sent(letter, world.send(connection, self._name, letter)))
            if world.chance(0.3):
                yield
        if self._eager and sent and world.chance(0.8):
            yield from settle(world, self._name, sent)
            self._believed[request.sequence] = _offset(sent[-1])
            return
        yield from settle(world, self._name, sent)
        self._attempt = None
        if self._hasty and sent:
            self._believed[request.sequence] = _offset(sent[-1])
            return
        for one in sent:
            yield from self._view.wait(_offset(one))

    def _part(self, answer: Answer, calls: tuple[Call, ...]) -> Letter:
        """Write one part of an answer, on top of what the attempt wrote before."""
        world, attempt = self._world, self._attempt
        assert attempt is not None
        choice = choose(world, attempt.state, world.new_id())
        reads = {call.field: call.given for call in calls} | choice.reads
        fields = tuple(sorted(choice.guarded | {call.field for call in calls}))
        base, chain, index = attempt.base, attempt.chain, attempt.index
        if world.habits.predicts_versions:
            base += index
        if world.habits.parts_without_chain and not self._eager:
            chain, index = f"part {world.new_id()}", 0
        event = Event(
            Kind.DIFF,
            "update",
            orjson.dumps(choice.operations),
            Guard(base, fields, chain, index),
            answer,
        )
        attempt.state = choice.state
        attempt.index += 1
        return Letter(event, 0, reads, calls, touched(choice.operations))


def _offset(sent: Sent) -> int:
    assert sent.delivery.offset is not None
    return sent.delivery.offset


# --- triggers and operators ----------------------------------------------------------------------


def trigger(world: World, source: str) -> Steps:
    """Turn changes of the watched instance into requests in another, numbered by their offset."""
    watched = View(world, WATCHED, ALL if world.chance(0.5) else 0)
    answered = View(world, TARGET, 1000)
    cursor = world.cursors.get(source, 0)
    last = answered.seen.sources.get(source)
    place = world.place(WATCHED)
    while True:
        watched.advance()
        yield
        found = list(wake_ups(place, cursor, watched.offset))[:4]
        end = found[-1] + 1 if len(found) == 4 else watched.offset
        if world.habits.cursor_first:
            world.cursors[source] = end
        connection: Connection = deque()
        sent = []
        for offset in found:
            event = Event(
                Kind.REQUEST,
                "update",
                b"{}",
                request=RequestPolicy(lane=LANES[0]),
                source=Source(source, (offset, 0), last),
            )
            last = (offset, 0)
            letter = Letter(event)
            sent.append(Sent(letter, world.send(connection, TARGET, letter)))
        yield from settle(world, TARGET, sent)
        gap = False
        for one in sent:
            verdict = yield from answered.wait(_offset(one))
            gap = gap or verdict == Verdict.CONFLICT
        if gap:
            last = answered.seen.sources.get(source)
            end = 0 if last is None else last[0] + 1
        cursor = end
        if not gap:
            world.cursors[source] = cursor


def operator(world: World, name: str) -> Steps:
    """Reset an instance, or fork it, at some time; now and then two of them fork to one name."""
    for _ in range(world.random.randint(0, 60)):
        yield
    if world.chance(0.5):
        event = Event(Kind.RESET, idempotency_key=f"reset {world.new_id()}")
        yield from send_surely(world, name, Letter(event))
        return
    child = f"{name}/fork {world.new_id()}"
    world.names.append(child)
    for _ in range(world.random.randint(1, 2)):
        state = world.place(name).seen[-1].state
        world.actors.append(forker(world, name, child, state))
        for _ in range(world.random.randint(0, 9)):
            yield
    for _ in range(3):
        world.actors += [committer(world, child), pipeliner(world, child)]


def forker(world: World, name: str, child: str, state: dict[str, Any]) -> Steps:
    """Fork in one or two parts. The parts are one chain, or two forks could be mixed."""
    names = sorted(state)
    parts = world.random.randint(1, 2)
    chain = f"fork {world.new_id()}"
    for part in range(parts):
        operations = [["set", one, state[one]] for one in names[part::parts]]
        event = Event(
            Kind.FORK,
            "",
            orjson.dumps(operations),
            Guard(0, (), chain, part),
            fork=ForkOf("app", name, 0, part, parts),
        )
        yield from send_surely(world, child, Letter(event, state=state))


# --- a run ---------------------------------------------------------------------------------------


def run(
    seed: int,
    fold: Fold = the_fold,
    habits: Habits | None = None,
    rows: Callable[[Fold], DictRows] = DictRows,
    weather: Weather | None = None,
) -> Report:
    """Let a world run until everything has arrived, and report."""
    world = World(seed, fold, habits or Habits(), rows, weather)
    judge = world.judge
    trace = ""
    try:
        rested = _play(world)
        judge.at_end()
        if rested:
            judge.at_rest(world)
            _copy(world)
        else:
            judge.wrong["the world does not come to rest"] += 1
    except (AssertionError, LookupError) as error:
        # A fold with a rule missing may well contradict itself, or the rows below it.
        judge.wrong["the fold contradicts its rows"] += 1
        trace = "".join(traceback.format_exception(error))
    return Report(seed, judge.wrong, judge.verdicts, trace)


def _play(world: World) -> bool:
    """Return whether the world came to rest."""
    rng = world.random
    makers: list[Callable[[], Steps]] = [
        partial(_processor, world, name, lane) for name in (WATCHED, TARGET) for lane in LANES
    ]
    makers += [partial(trigger, world, source) for source in TRIGGERS]
    services = [make() for make in makers]
    zombies: list[Steps] = []
    world.actors.append(operator(world, TARGET))
    if world.chance(0.4):
        world.actors.append(operator(world, WATCHED))
    births = rng.randint(20, 90)
    for step in range(STEPS_MAX):
        if step % 50 == 0 and not births and not world.actors and _is_quiet(world):
            return True
        luck = rng.random()
        if births and luck < 0.06:
            births -= 1
            world.actors.append(_new_writer(world))
        elif luck < 0.45:
            world.deliver()
        elif luck < 0.72 and world.actors:
            _step_one(world)
        elif zombies and luck < 0.78:
            next(rng.choice(zombies))
        else:
            number = rng.randrange(len(services))
            next(services[number])
            if births and world.chance(world.weather.crashes):
                if world.chance(0.6):
                    zombies = [*zombies, services[number]][-3:]
                services[number] = makers[number]()
    return False


def _processor(world: World, name: str, lane: str) -> Steps:
    return Processor(world, name, lane).steps()


def _new_writer(world: World) -> Steps:
    kinds = (blind_writer, committer, pipeliner, requester)
    kind = world.random.choices(kinds, (30, 20, 20, 30))[0]
    names = world.names[:2] if kind is requester else world.names
    return kind(world, world.random.choice(names))


def _step_one(world: World) -> None:
    number = world.random.randrange(len(world.actors))
    try:
        next(world.actors[number])
    except StopIteration:
        world.actors[number] = world.actors[-1]
        world.actors.pop()


def _is_quiet(world: World) -> bool:
    if world.stray or world.connections:
        return False
    if any(world.place(name).seen[-1].waiting for name in (WATCHED, TARGET)):
        return False
    end = world.place(WATCHED).end
    return all(world.cursors.get(source, 0) >= end for source in TRIGGERS)


def _copy(world: World) -> None:
    """Copy an instance to another log, get killed on the way, resume somewhere before: the same."""
    history = world.place(WATCHED).rows.history
    copy = world.new_rows()
    killed = world.random.randint(0, len(history))
    resumed = world.random.randint(0, killed)
    for entry in [*history[:killed], *history[resumed:]]:
        copy.take(entry.event._replace(copied=Copied(entry.sequence, entry.time_ms)))
    original = world.place(WATCHED).rows
    if copy.state() != original.state() or copy.verdicts != original.verdicts:
        world.judge.wrong["a resumed copy differs"] += 1

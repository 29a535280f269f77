"""Relays in any order of writes, crashes and zombies, beside a ten-line model.

Goal: one request per watched change and target, in the order of each watched instance. Method:
hypothesis interleaves writes with the steps of two relays of one trigger, each of which may be
cut off at any point of a step and then be replaced, or go on as if nothing had happened. After
every step what was requested so far must be a beginning of what the model wants; in the end, all.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from unittest import mock

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventstore import Diff, EventStore, Kind, State, Verdict, testing
from eventstore.processing import Processing
from processors.component import Component, Update, changed
from processors.relay import Relay
from processors.relay_change import Change

FIELDS = ("a", "b", "c")
WATCHED = {"a", "b"}
ORDERS = ("o-1", "o-2")
RELAYS = range(2)

WRITES = st.lists(
    st.tuples(st.sampled_from(ORDERS), st.sets(st.sampled_from(FIELDS), min_size=1)),
    min_size=1,
    max_size=4,
)

#: For whom (the target) and because of what (the watched instance): the versions, in order.
Requests = dict[tuple[str, str], list[int]]


def targets(instance: str, version: int) -> list[str]:
    return [["all", instance], [], ["all"]][version % 3]


def model(written: list[tuple[str, set[str]]]) -> Requests:
    """Return the requests that these changes make: the instance and the fields of each."""
    wanted: Requests = defaultdict(list)
    versions = dict.fromkeys(ORDERS, 0)
    for instance, fields in written:
        versions[instance] += 1
        if fields & WATCHED:
            for target in targets(instance, versions[instance]):
                wanted[target, instance].append(versions[instance])
    return wanted


class _CutOff(BaseException):
    """Ends a step where a process would have died."""


def watcher() -> Update:
    def key(change: Change) -> list[str]:
        return targets(change.instance, change.version)

    @component.update(on=changed(*WATCHED, app="orders", key=key, start="beginning"))
    def refresh(state: State, props: Mapping[str, Any]) -> None: ...

    return component.updates["refresh"]


component = Component("shop")
update = watcher()


class Relaying(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        # A cursor after every step, so that none may be a step too early.
        self.hurry = mock.patch("processors.relay._CURSOR_DELAY_S", 0.0)
        self.hurry.start()
        self.store = EventStore("memory://")
        self.orders = self.store.app("orders")
        self.shop = Processing(self.store.app("shop"))
        self.written: list[tuple[str, set[str]]] = []
        self.relays = [self.relay() for _ in RELAYS]

    def relay(self) -> Relay:
        return Relay(self.store, component, update, self.shop, lambda: None)

    @rule(writes=WRITES)
    def write(self, writes: list[tuple[str, set[str]]]) -> None:
        for instance, fields in writes:
            self.orders.append(instance, dict.fromkeys(sorted(fields), len(self.written)))
            self.written.append((instance, fields))
        Processing(self.orders).catch_up()  # so that the next step has it, always

    @rule(instance=st.sampled_from(ORDERS))
    def reset(self, instance: str) -> None:
        if self.orders.exists(instance):
            self.orders.reset(instance)
            self.written.append((instance, set(FIELDS)))

    @rule(instance=st.sampled_from(ORDERS))
    def write_what_is_refused(self, instance: str) -> None:
        self.orders.append(instance, Diff().append("a", 1), expected_version=10_000)

    @rule(writes=WRITES, number=st.sampled_from(RELAYS))
    def write_and_step(self, writes: list[tuple[str, set[str]]], number: int) -> None:
        self.write(writes)
        self.step(number)

    @rule(number=st.sampled_from(RELAYS))
    def step(self, number: int) -> None:
        self.relays[number].step()

    @rule(
        writes=WRITES,
        number=st.sampled_from(RELAYS),
        passages=st.integers(1, 3),
        then=st.sampled_from(("dies", "goes on", "comes back later")),
    )
    def cut_off(
        self, writes: list[tuple[str, set[str]]], number: int, passages: int, then: str
    ) -> None:
        """Let a relay fail or die at a point of its step."""
        self.write(writes)
        left, here = passages, threading.get_ident()

        def passed(point: str) -> None:
            nonlocal left
            left -= point.startswith("relay.")
            # The threads that fold and commit pass points of their own, and are not what dies.
            if left <= 0 and threading.get_ident() == here:
                raise _CutOff

        testing.on_fault_point = passed
        try:
            self.relays[number].step()
        except _CutOff:
            testing.on_fault_point = None
            if then == "dies":
                self.relays[number] = self.relay()
            elif then == "goes on":
                self.relays[number].step()
        finally:
            testing.on_fault_point = None

    @rule(number=st.sampled_from(RELAYS))
    def hand_over(self, number: int) -> None:
        self.relays[number].close()
        self.relays[number] = self.relay()

    @rule()
    def rebuild_the_views(self) -> None:
        if self.orders.instances():
            self.shop.app.append("x", {"n": 1}).result()
            self.shop.app.rebuild_view()

    @invariant()
    def nothing_is_requested_twice_or_out_of_order(self) -> None:
        wanted = model(self.written)
        for place, versions in self.requested().items():
            assert versions == wanted[place][: len(versions)], place

    def requested(self) -> Requests:
        made: Requests = defaultdict(list)
        for entry in self.shop.app.tail(start="beginning", follow=False):
            if entry.event.kind == Kind.REQUEST and entry.verdict == Verdict.ACCEPTED:
                props = orjson.loads(entry.event.body)
                made[entry.instance, props["instance"]].append(props["version"])
        return made

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        last = self.relay()
        if "orders" in self.store.apps():
            Processing(self.orders).catch_up()
        for _ in range(100):
            last.step()
            if last.status().state in ("level", "waiting"):
                break
        assert self.requested() == {
            place: made for place, made in model(self.written).items() if made
        }
        self.store.close()
        self.hurry.stop()


Relaying.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestRelaying = Relaying.TestCase

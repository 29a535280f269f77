"""ComponentInstance: one instance of a component, as a program works with it.

Here it is opened and shut down, its state is read and written, and it is decided whether a call may
run. How a call goes stands in call.py, what becomes of the updates in updates.py, how an instance
begins in beginning.py. An instance has no threads of its own.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import math
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from eventstore import (
    Diff,
    Entry,
    Event,
    EventStore,
    Guard,
    InstanceNotFound,
    Kind,
    Receipt,
    Rejected,
    State,
    Verdict,
)
from eventstore.lifetime import abandon_in_child
from processors.beginning import begin, state_of
from processors.call import Call
from processors.component import Component
from processors.flow import Flow, Place
from processors.results import LiveStates, changes_of, has_hooks
from processors.runner.loop import is_updates_loop, refuse_to_block_updates
from processors.serve_cache import ServeCache
from processors.stores import give_back, in_thread, processing_of, take
from processors.submitted import Submission, Submitted
from processors.updates import InstanceUpdates

__all__ = ["Component", "ComponentInstance"]

logger: Final = logging.getLogger("processors.instance")

#: Events that `requests` looks back over.
_HISTORY_ROWS_MAX: Final = 10_000
#: Of the syllables that the names of instances without a name are made of.
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"


class ComponentInstance:
    """One instance of a component. A context manager; safe to share between threads."""

    def __init__(
        self,
        component: Component,
        instance_id: str = "",
        init_state_params: Mapping[str, Any] | None = None,
        logging_level: int | str | None = None,
        update_task_type: Literal["thread", "process"] = "thread",
        disable_update_task: bool = False,
        redis_socket_timeout: float = 60,
        config_path: str = ".motionrc.yml",
        flush_on_exit: bool = False,
        *,
        store: EventStore | None = None,
        url: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open an instance; it begins with its first opening, by any process.

        Args:
            component: what it is an instance of.
            instance_id: its name; a readable random one by default.
            init_state_params: arguments for `init_state`, for an instance that has not begun yet.
            logging_level: of the logger `processors`; None leaves it alone.
            update_task_type: where this process runs the instance's sync updates while it is
                open: in a "thread" or in a "process".
            disable_update_task: run no updates here; they wait for a daemon or another process.
            redis_socket_timeout: taken for Motion's sake, without effect.
            config_path: taken for Motion's sake, without effect.
            flush_on_exit: wait at shutdown for the updates of the flows that were run.
            store: where the component's app is; it stays the caller's to close.
            url: the same by its URL; default `$EVENTSTORE_URL`, else `./.eventstore`. Instances
                of one process share one store per URL, and the last one closes it.

        Raises:
            ValueError: an id with `__`, or arguments that contradict one another.
            TypeError: `init_state` returned no dict.
            RuntimeError: a script opens it while a process for its updates imports that script.
            Whatever `init_state` raises; the instance has not begun then.
            As for EventStore and App.append.
        """
        self._closed = True  # until it is open
        if _is_importing_main():
            raise RuntimeError(
                f"component {component.name}: a process that was started for an update (one with"
                " worker='process', or one that was begun before, and never answered) imports this"
                " script, and so opens an instance again: do that under"
                ' `if __name__ == "__main__":`'
            )
        self.component = component
        self.instance_id = instance_id or _readable_id()
        self.disable_update_task = disable_update_task
        self.flush_on_exit = flush_on_exit
        #: The flows that were run here.
        self.flows_run: set[str] = set()
        _check(self, update_task_type, init_state_params, store, url)
        if logging_level is not None:
            logging.getLogger("processors").setLevel(logging_level)
        self._worker = update_task_type
        self._lent = store is not None
        self._store = take(url) if store is None else store
        try:
            self._open(init_state_params)
        except BaseException:
            if not self._lent:
                give_back(self._store)
            raise
        self._closed = False
        abandon_in_child(self)
        _open.add(self)

    def _open(self, init_state_params: Mapping[str, Any] | None) -> None:
        component, store = self.component, self._store
        self._app = store.app(component.name)
        self._processing = processing_of(store, component.name)
        self._live = LiveStates.share(store, component)
        self._place = Place(
            component, self.instance_id, self._processing, self._live, ServeCache.of(store)
        )
        #: A read asks the log for what other processes wrote where that costs microseconds. On
        #: Kafka it is a round trip, and a read has what the view has.
        self._fresh = not store.url.startswith("kafka:")
        self._has_hooks = has_hooks(component)
        begin(component, self._processing, self._live, self.instance_id, init_state_params)
        self._updates = InstanceUpdates(
            store,
            component,
            self._processing,
            self.instance_id,
            worker=self._worker,
            runs_here=not self.disable_update_task,
        )

    @property
    def instance_name(self) -> str:
        """The component's name, `__`, and the id."""
        return f"{self.component.name}__{self.instance_id}"

    @property
    def running(self) -> bool:
        """Whether it is open."""
        return not self._closed

    # --- answering a flow -----------------------------------------------------------------------

    def run(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        flush_update: bool = False,
    ) -> Any:
        """Return what serve answers, once the flow's updates are queued durably.

        Order: the flow is looked up; serve answers, from the cache or anew; one request per
        update is in the log, in the order of their definition, in one group commit. Serve never
        waits for updates, and sees the newest state that any process committed.

        Args:
            flow_key: which flow.
            props: the arguments of serve and updates, by name.
            ignore_cache: let serve answer anew (the answer is kept all the same).
            force_refresh: wait for the updates of this instance that are pending now, and let
                serve answer anew.
            flush_update: return when this call's updates have taken effect, in their turn.

        Returns:
            What serve returned; of a generator, its first item (None if it has none); None for a
            flow without serve.

        Raises:
            KeyError: no such flow; nothing ran.
            TypeError: serve is async: use `arun`. Nothing ran.
            RuntimeError: the instance is shut down, or it is disabled, and updates would wait for
                somebody else: `submit` says that this is meant. Nothing ran.
            UpdateFailed: with `flush_update`, an update did not take effect.
            UnsupportedValue, EventTooLarge, LogUnavailable: the updates could not be queued.
            Whatever serve raises; no update is queued then.

        What is raised after serve answered has the answer as `serve_result`.
        """
        return self._call(flow_key, props, ignore_cache, force_refresh, flush_update).run()

    def gen(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        flush_update: bool = False,
    ) -> Iterator[Any]:
        """Yield what serve yields, item by item; the updates are queued after the last one.

        Who stops early leaves the items so far as `serve_result` to the updates, which are queued
        then, not waited for. A serve that is no generator has one item, and a flow without serve
        the item None, each after its updates.

        Arguments and errors are those of `run`; a flow that does not exist is told by the call
        itself.
        """
        return self._call(flow_key, props, ignore_cache, force_refresh, flush_update).items()

    def _call(
        self,
        key: str,
        props: Mapping[str, Any] | None,
        ignore_cache: bool,
        force_refresh: bool,
        flush_update: bool = False,
        *,
        asynchronous: bool = False,
        may_wait: bool = False,
    ) -> Call:
        """Return a call that may run, or raise why it may not."""
        self._refuse_when_closed()
        flow = Flow(self._place, key, props)
        if flush_update and flow.updates:
            self._updates.refuse_inside()
            if not asynchronous:
                refuse_to_block_updates("arun(..., flush_update=True)")
        if flow.serve is not None and flow.serve.is_async and not asynchronous:
            raise TypeError(
                f"serve {key!r} of component {self.component.name} is async: await"
                " instance.arun(...), or iterate over instance.agen(...)"
            )
        if self.disable_update_task and flow.updates and not flush_update and not may_wait:
            raise RuntimeError(
                f"{self.instance_name} was opened with disable_update_task=True, so nobody here"
                f" runs the updates of {key!r}: give flush_update=True, or call submit(...) to"
                " leave them to a daemon. Nothing was run"
            )
        self.flows_run.add(key)
        return Call(
            flow,
            self._updates,
            self._store,
            self._state,
            ignore_cache=ignore_cache,
            force_refresh=force_refresh,
            flush_update=flush_update,
        )

    def submit(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        *,
        delay_s: float | None = None,
        not_before: datetime.datetime | None = None,
    ) -> Submission:
        """Do what `run` does, and return what can tell what became of the updates.

        Works on a disabled instance too: the updates wait for whoever runs them.

        Args:
            flow_key: as for `run`.
            props: as for `run`.
            ignore_cache: as for `run`.
            force_refresh: as for `run`.
            delay_s: run the updates in so many seconds at the earliest.
            not_before: run them at this time, with its zone, at the earliest.

        Raises:
            As for `run`.
            ValueError: both delays, one below 0, or a time without a zone; nothing was run.
        """
        not_before_ms = _not_before_ms(delay_s, not_before)
        call = self._call(flow_key, props, ignore_cache, force_refresh, may_wait=True)
        return self._submission(call.flow, call.submit(not_before_ms))

    def _submission(self, flow: Flow, receipts: Sequence[Receipt]) -> Submission:
        updates = zip(flow.updates, receipts, strict=True)
        return Submission(
            flow.result, tuple(self._submitted(update.name, place) for update, place in updates)
        )

    def _submitted(self, name: str, place: Receipt | int) -> Submitted:
        return Submitted(self._processing, self.instance_id, name, place, self._running_here)

    def _running_here(self) -> dict[int, int]:
        # Not the method of `_updates` itself: who holds a Submission holds the instance with this,
        # so that the interpreter's exit shuts it down, and lets what runs finish.
        return self._updates.running_here()

    def requests(self, limit: int = 100) -> list[Submitted]:
        """Return the instance's requests, newest first: all that are open, and the latest others.

        Args:
            limit: how many that have an answer, at most, among its latest 10,000 events.
        """
        self._refuse_when_closed()
        self._processing.catch_up()
        found = {
            row.request.sequence: row.request.name
            for row in self._processing.pending(self.instance_id)
        }
        answered = 0
        for entry in self._latest():
            if answered >= limit:
                break
            if entry.event.kind == Kind.REQUEST and entry.sequence not in found:
                found[entry.sequence] = entry.event.name
                answered += 1
        return [self._submitted(found[at], at) for at in sorted(found, reverse=True)]

    def _latest(self) -> Iterator[Entry]:
        head = self._processing.head(self.instance_id)
        if head is None:
            return iter(())
        start = max(0, head.sequence - _HISTORY_ROWS_MAX)
        return self._app.history(self.instance_id, start=start, reverse=True)

    # --- the same for asyncio -------------------------------------------------------------------

    async def arun(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        flush_update: bool = False,
    ) -> Any:
        """Answer as `run` does, for any serve, without blocking the event loop.

        A sync serve runs on the loop, as in Motion; waiting for log, view and updates does not.
        Requests of one program are queued in the order of its calls.

        Arguments and errors are those of `run`.
        """
        call = self._call(
            flow_key, props, ignore_cache, force_refresh, flush_update, asynchronous=True
        )
        return await call.arun()

    def agen(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        flush_update: bool = False,
    ) -> AsyncIterator[Any]:
        """Yield as `gen` does, for any serve, without blocking the event loop.

        Who stops early should `aclose()` the iterator, or the updates are queued when the event
        loop does.

        Arguments and errors are those of `run`.
        """
        call = self._call(
            flow_key, props, ignore_cache, force_refresh, flush_update, asynchronous=True
        )
        return call.aitems()

    async def asubmit(
        self,
        flow_key: str,
        props: Mapping[str, Any] | None = None,
        ignore_cache: bool = False,
        force_refresh: bool = False,
        *,
        delay_s: float | None = None,
        not_before: datetime.datetime | None = None,
    ) -> Submission:
        """Submit as `submit` does, for any serve, without blocking the event loop."""
        not_before_ms = _not_before_ms(delay_s, not_before)
        call = self._call(
            flow_key, props, ignore_cache, force_refresh, asynchronous=True, may_wait=True
        )
        return self._submission(call.flow, await call.asubmit(not_before_ms))

    # --- waiting for updates --------------------------------------------------------------------

    def flush_update(self, flow_key: str, timeout_s: float | None = None) -> None:
        """Return when the updates of a flow that are pending now have been run or discarded.

        Args:
            flow_key: which flow.
            timeout_s: how long to wait; None waits as long as it takes.

        Raises:
            KeyError: no such flow.
            UpdateFailed: one of them failed; all have been run.
            ReadTimeout: not all were run in time.
        """
        self._refuse_when_closed()
        self._updates.refuse_inside()
        flow = Flow(self._place, flow_key, None)
        names = {update.name for update in flow.updates}
        if not names:
            return
        failures = self._updates.wait(names.__contains__, timeout_s)
        if failures:
            raise failures[0]

    async def aflush_update(self, flow_key: str, timeout_s: float | None = None) -> None:
        """Wait as `flush_update` does, without blocking the event loop."""
        self._updates.refuse_inside()  # a thread would not know that it is asked by an update
        await in_thread(self._store, self.flush_update, flow_key, timeout_s)

    # --- state ----------------------------------------------------------------------------------

    def read_state(self, key: str, default_value: Any = None) -> Any:
        """Return a field of the newest committed state, or `default_value`.

        On the embedded log and in memory that is the newest of any process; on Kafka what this
        process has seen, milliseconds behind. The value is made for the caller: changing it
        changes nothing that is stored.
        """
        self._refuse_when_closed()
        if self._has_hooks:
            return self._live.given(self.component, self._state()).get(key, default_value)
        return self._app.get(self.instance_id, key, fresh=self._fresh, default=default_value)

    def write_state(self, state_update: Mapping[str, Any] | Diff) -> None:
        """Set fields, or apply a diff; return when that is durable and everybody can read it.

        It waits for no update; one that runs meanwhile and overwrites the same fields runs again,
        on the new state. An empty dict writes nothing.

        Raises:
            TypeError: it is neither a dict nor a Diff; nothing was written.
            UnsupportedValue, InvalidDiff: it cannot be stored; nothing was written.
            Rejected: an operation does not fit the state; it had no effect.
            LogUnavailable, OutcomeUnknown: see errors.py of eventstore.
        """
        self._refuse_when_closed()
        if not isinstance(state_update, Mapping | Diff):
            raise TypeError(
                f"write_state takes a dict of fields to set, or a Diff, not {state_update!r:.80}"
                f" ({type(state_update).__name__}); nothing was written"
            )
        if not len(state_update):
            return
        if has_hooks(self.component):
            self._write_live(state_update)
            return
        receipt = self._app.append(self.instance_id, state_update, name="write_state")
        entry = receipt.entry()
        if entry.verdict != Verdict.ACCEPTED:
            raise Rejected(self.component.name, self.instance_id, entry.reason)

    def _write_live(self, state_update: Mapping[str, Any] | Diff) -> None:
        """Write by way of `save_state`, again where somebody else wrote meanwhile."""
        if isinstance(state_update, Diff):
            raise TypeError("write_state of a component with save_state or load_state takes a dict")
        while True:
            state = self._state()
            given = self._live.given(self.component, state)
            diff = changes_of(self.component, state, given, state_update)
            assert state.version is not None
            if not len(diff):
                self._live.keep(self.instance_id, state.version, given)
                return
            event = Event(
                Kind.DIFF,
                "write_state",
                diff.encode(),
                Guard(state.version, ("*",)),
                generation=state.generation,
            )
            entry = self._processing.send([(self.instance_id, event)])[0].entry()
            if entry.verdict == Verdict.ACCEPTED:
                self._live.keep(self.instance_id, entry.version, given)
                return
            if entry.verdict != Verdict.CONFLICT:
                raise Rejected(self.component.name, self.instance_id, entry.reason)

    def get_version(self) -> int:
        """Return how many changes of the state have taken effect, by any process."""
        self._refuse_when_closed()
        version = self._state().version
        assert version is not None
        return version

    def _state(self) -> State:
        try:
            state: State = self._app.get(self.instance_id, fresh=self._fresh)
        except InstanceNotFound:
            return state_of(self._processing, self.instance_id)
        return state

    # --- the end --------------------------------------------------------------------------------

    def shutdown(self, wait_for_logging_threads: bool = False) -> None:
        """Let go of the instance: running updates finish, others stay pending. Again: nothing.

        In the code of an async update it does not wait until they have: they run on the same loop.

        Args:
            wait_for_logging_threads: taken for Motion's sake, without effect.

        Raises:
            UpdateFailed: with `flush_on_exit`, an update failed; the instance is shut down anyway.
        """
        if self._closed:
            return
        try:
            if self.flush_on_exit:
                for key in sorted(self.flows_run):
                    self.flush_update(key)
        finally:
            self._closed = True
            if is_updates_loop():
                threading.Thread(
                    target=self._let_go, name="processors-shutdown", daemon=True
                ).start()
            else:
                self._let_go()

    def _let_go(self) -> None:
        try:
            self._updates.release()
        finally:
            if not self._lent:
                give_back(self._store)

    def close(self, wait_for_logging_threads: bool = False) -> None:
        """Do what `shutdown` does."""
        self.shutdown(wait_for_logging_threads)

    def abandon(self) -> None:
        """Refuse everything in a forked child, where no runner and no store works."""
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self.instance_name} is shut down: open it again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"<ComponentInstance {self.instance_name}{'' if self.running else ', shut down'}>"


def _check(
    instance: ComponentInstance,
    worker: object,
    init_state_params: object,
    store: EventStore | None,
    url: object,
) -> None:
    """Refuse arguments that contradict one another, before anything is opened."""
    name = instance.component.name
    identity = instance.instance_id
    if not isinstance(identity, str) or "__" in identity:
        raise ValueError(
            f"component {name}: instance_id {identity!r}; an id is text without '__', which"
            " separates it from the component's name"
        )
    if worker not in ("thread", "process"):
        raise ValueError(
            f'component {name}: update_task_type={worker!r}; give "thread" or "process"'
        )
    if instance.disable_update_task and instance.flush_on_exit:
        raise ValueError(
            f"component {name}: disable_update_task=True runs no updates here, so flush_on_exit="
            "True has nothing to wait for; give one of them"
        )
    if init_state_params is not None and not isinstance(init_state_params, Mapping):
        raise TypeError(f"component {name}: init_state_params={init_state_params!r:.80} is no dict")
    if store is not None and url is not None:
        raise ValueError(f"component {name}: give store= or url=, not both")


def _is_importing_main() -> bool:
    """Whether this is a spawned process that is still importing its parent's main module.

    To run a script's work again in there would end in processes that wait for one another.
    """
    module = sys.modules.get("multiprocessing.process")  # imported, if this is such a process
    return module is not None and getattr(module.current_process(), "_inheriting", False)


def _not_before_ms(delay_s: float | None, not_before: datetime.datetime | None) -> int | None:
    if delay_s is not None and not_before is not None:
        raise ValueError("submit: give delay_s= or not_before=, not both")
    if not_before is not None:
        if not_before.tzinfo is None:
            raise ValueError(f"submit: not_before={not_before} has no time zone")
        return round(not_before.timestamp() * 1_000)
    if delay_s is None:
        return None
    if not 0 <= delay_s < math.inf:
        raise ValueError(f"submit: delay_s={delay_s} is no time to wait for, in seconds")
    return round((time.time() + delay_s) * 1_000)


def _readable_id() -> str:
    """Return a random name that people can read to one another: three words, 38 bits."""

    def word() -> str:
        syllables = (secrets.choice(_CONSONANTS) + secrets.choice(_VOWELS) for _ in range(2))
        return "".join(syllables)

    return "-".join(word() for _ in range(3))


#: Those that are shut down when the interpreter ends.
_open: weakref.WeakSet[ComponentInstance] = weakref.WeakSet()


def _shut_down_all() -> None:
    for instance in list(_open):
        try:
            instance.shutdown()
        except Exception:
            logger.exception("%s: at the interpreter's exit", instance.instance_name)


# Before thread pools end, which is before `atexit`: without them no update comes to its end.
# (tests/contract/test_instance.py: a program may end without shutting down)
getattr(threading, "_register_atexit", atexit.register)(_shut_down_all)

Component.opener = ComponentInstance

"""How a call of a flow goes: serve answers, then the updates are queued, sync or on an event loop.

Of each pair of twins, the one that begins with `a` awaits what the other waits for: log and view in
a thread, user code on the loop. All that does not wait is said once. What serve and updates are
given stands in flow.py, who runs the updates in updates.py.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventstore import EventStore, Receipt, State
from processors.flow import Flow
from processors.stores import in_thread
from processors.updates import InstanceUpdates

__all__ = ["Call"]


class Call:
    """One call of a flow, made once, by one of its methods."""

    def __init__(
        self,
        flow: Flow,
        updates: InstanceUpdates,
        store: EventStore,
        newest_state: Callable[[], State],
        *,
        ignore_cache: bool,
        force_refresh: bool,
        flush_update: bool,
    ) -> None:
        """Prepare; nothing runs. The flags are those of `ComponentInstance.run`."""
        self.flow = flow
        self._updates = updates
        self._store = store
        self._newest_state = newest_state
        self._looks_up = not (ignore_cache or force_refresh)
        self._force_refresh = force_refresh
        self._flush_update = flush_update

    # --- sync -----------------------------------------------------------------------------------

    def run(self) -> Any:
        """Return what serve answers, once the updates are queued, or have taken effect."""
        self._serve()
        self._queue(flush=self._flush_update)
        return self.flow.result

    def items(self) -> Iterator[Any]:
        """Yield what serve yields, and queue the updates then; without a generator one item."""
        flow = self.flow
        if not self._has_items():
            yield self.run()
            return
        self._prepare()
        source = iter(flow.props.serve_result if flow.is_cached else flow.call())
        items = []
        try:
            for item in source:
                items.append(item)
                yield item
        except GeneratorExit:
            if not flow.is_cached:
                source.close()
                flow.stopped(items)
            self._queue(flush=False)
            raise
        if not flow.is_cached:
            flow.served(items)
        self._queue(flush=self._flush_update)

    def submit(self, not_before_ms: int | None) -> list[Receipt]:
        """Let serve answer, and queue the updates; return their receipts, durable."""
        self._serve()
        with self._telling():
            receipts = self._updates.send(self.flow, not_before_ms)
            for receipt in receipts:
                receipt.result()
        return receipts

    def _serve(self) -> None:
        flow = self.flow
        if flow.serve is None:
            return
        self._prepare()
        if not flow.is_cached:
            answer = flow.call()
            flow.served(list(answer) if flow.serve.is_generator else answer)

    def _queue(self, *, flush: bool) -> None:
        if not self.flow.updates:
            return
        with self._telling():
            if flush:
                self._updates.complete(self.flow)
                return
            for receipt in self._updates.send(self.flow):
                receipt.result()

    # --- the same for asyncio -------------------------------------------------------------------

    async def arun(self) -> Any:
        """Do what `run` does."""
        await self._aserve()
        await self._aqueue(flush=self._flush_update)
        return self.flow.result

    async def aitems(self) -> AsyncIterator[Any]:
        """Do what `items` does."""
        flow = self.flow
        if not self._has_items():
            yield await self.arun()
            return
        await in_thread(self._store, self._prepare)
        source = _asynchronous(flow.props.serve_result if flow.is_cached else flow.call())
        items = []
        try:
            async for item in source:
                items.append(item)
                yield item
        except GeneratorExit:
            if not flow.is_cached:
                await source.aclose()
                flow.stopped(items)
            await self._aqueue(flush=False)
            raise
        if not flow.is_cached:
            await in_thread(self._store, flow.served, items)
        await self._aqueue(flush=self._flush_update)

    async def asubmit(self, not_before_ms: int | None) -> list[Receipt]:
        """Do what `submit` does."""
        await self._aserve()
        with self._telling():
            receipts = self._updates.send(self.flow, not_before_ms)
            for receipt in receipts:
                await receipt
        return receipts

    async def _aserve(self) -> None:
        flow = self.flow
        if flow.serve is None:
            return
        await in_thread(self._store, self._prepare)
        if not flow.is_cached:
            answer = flow.call()
            if flow.serve.is_generator:
                answer = [item async for item in _asynchronous(answer)]
            elif inspect.isawaitable(answer):
                answer = await answer
            await in_thread(self._store, flow.served, answer)

    async def _aqueue(self, *, flush: bool) -> None:
        if not self.flow.updates:
            return
        with self._telling():
            if flush:
                await self._updates.acomplete(self.flow)
                return
            # Here and not in a thread: two calls in a row keep their order.
            for receipt in self._updates.send(self.flow):
                await receipt

    # --- what both need -------------------------------------------------------------------------

    def _has_items(self) -> bool:
        serve = self.flow.serve
        return serve is not None and serve.is_generator

    def _prepare(self) -> None:
        if self._force_refresh:
            self._updates.wait(lambda name: True)
        self.flow.prepare(self._newest_state(), look_up=self._looks_up)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Let an error carry what serve had answered: that is computed, and may be dear."""
        try:
            yield
        except Exception as error:
            if self.flow.serve is not None:
                error.serve_result = self.flow.result  # type: ignore[attr-defined]
                error.add_note("serve had answered: see the serve_result of this error")
            raise


async def _asynchronous(items: Any) -> Any:
    """Yield from a list, a generator or an async generator; closed early, it closes that."""
    if not hasattr(items, "__aiter__"):
        for item in items:
            yield item
        return
    try:
        async for item in items:
            yield item
    finally:
        await items.aclose()

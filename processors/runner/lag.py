"""Lag: how far the work of each shard is, for tools that show a group's lag. It decides nothing.

Only a log that has a place for it asks (Kafka: the group's committed offsets), about once a second.
What there is to run, and whether it was run, is known from the fold; nothing here is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from eventstore.processing import Processing
from processors.runner.board import Board
from processors.runner.lanes import Lane, Waiting

__all__ = ["Lag"]

#: Lanes that are looked at before the board's lock is given back: half a millisecond.
_LANES_AT_ONCE: Final = 500


class Lag:
    """See the module's text. `offsets` is for one thread, the log's."""

    def __init__(
        self, board: Board, processing: Processing, complete: Callable[[], frozenset[int]]
    ) -> None:
        """Look at a board.

        Args:
            board: with the lanes of a runner.
            processing: of its app.
            complete: returns the shards of which the board has all requests that are open; called
                with the board's lock held.
        """
        self._board, self._processing, self._complete = board, processing, complete
        #: How far the view was, and what was complete, when `offsets` last told something.
        self._told: tuple[Mapping[int, int], frozenset[int]] | None = None

    def tell_anew(self) -> None:
        """Tell all of it the next time: whoever was told may not have it any more."""
        self._told = None

    def offsets(self) -> dict[int, int]:
        """Return the offset of the first open request of each shard that is a partition.

        Where none is open it is the first offset that the view has not folded. Nothing is told
        where it would be the same as before, or cannot be known at this moment.
        """
        # Before the lanes: what is folded after this is no reason to go beyond it.
        folded = dict(self._processing.position)
        with self._board.mutex:
            shards = self._complete()
            if self._told == (folded, shards):
                return {}  # the fold alone opens and closes requests
            lanes = [lane for lane in self._board.lanes.values() if lane.shard in shards]
        found = {shard: folded[shard] + 1 for shard in shards}
        for lane, one in self._firsts(lanes):
            if one.offset is None:
                one.offset = self._processing.offset_of(lane.instance, one.sequence)
            if one.offset is None:
                return {}
            found[lane.shard] = min(found[lane.shard], one.offset)
        self._told = (folded, shards)
        return found

    def _firsts(self, lanes: list[Lane]) -> Iterator[tuple[Lane, Waiting]]:
        """Yield the first open request of each lane that has one.

        Some lanes at a time, so that the board is not kept from its work where 100,000 wait: what
        is answered meanwhile counts the next time.
        """
        for start in range(0, len(lanes), _LANES_AT_ONCE):
            with self._board.mutex:
                firsts = [
                    (lane, lane.first_open()) for lane in lanes[start : start + _LANES_AT_ONCE]
                ]
            for lane, one in firsts:
                if one is not None:
                    yield lane, one

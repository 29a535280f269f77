"""Lag: how far the work of each shard is, for tools that show a group's lag. It decides nothing.

Only a log that has a place for it asks (Kafka: the group's committed offsets), about once a second.
What there is to run, and whether it was run, is known from the fold; nothing here is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eventstore.processing import Processing
from processors.runner.board import Board

__all__ = ["Lag"]


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
            firsts = [
                (lane, one)
                for lane in self._board.lanes.values()
                if lane.shard in shards and (one := lane.first_open()) is not None
            ]
        found = {shard: folded[shard] + 1 for shard in shards}
        for lane, one in firsts:
            if one.offset is None:
                one.offset = self._processing.offset_of(lane.instance, one.sequence)
            if one.offset is None:
                return {}
            found[lane.shard] = min(found[lane.shard], one.offset)
        self._told = (folded, shards)
        return found

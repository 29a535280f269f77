"""Who shares the shards of the memory log, when members come and go at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from eventstore.log.memory import _Group, _MemoryOwnership
from tests.contract.logs import DEADLINE_S, eventually

EVERYTHING = frozenset(range(16))


def member_of(group: _Group) -> _MemoryOwnership:
    return _MemoryOwnership(group, lambda shards: None)


def test_one_who_comes_while_another_goes_gets_what_that_one_had() -> None:
    group = _Group(len(EVERYTHING))
    going, coming = member_of(group), member_of(group)
    group.join(going)
    joining = threading.Thread(target=group.join, args=(coming,))

    class Members(list[Any]):
        """Somebody comes while they are looked through."""

        def __iter__(self) -> Iterator[Any]:
            joining.start()
            if not group._changing.locked():  # else it waits until they were
                joining.join(DEADLINE_S)
            return super().__iter__()

    group._members = Members([going])
    going.close()
    joining.join(DEADLINE_S)

    assert eventually(lambda: coming.shards == EVERYTHING)


def test_one_that_closes_while_it_is_given_shards_has_none() -> None:
    class Closing(_MemoryOwnership):
        """Somebody closes it right before it has what it is given."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_shards" and value:
                self.close()
            super().__setattr__(name, value)

    member = Closing(_Group(len(EVERYTHING)), lambda shards: None)

    member.set_shards(EVERYTHING)

    assert member.shards == frozenset()

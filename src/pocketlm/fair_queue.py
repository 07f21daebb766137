"""FairQueue: who waits for a turn, with no owner's crowd in front of another owner's one.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each item gets a start tag, the finish tag of its
owner's item before it, or the present virtual time if that is later; the least start tag goes first.
So owners with a backlog get equal shares of what items cost, and an owner who has not asked for a
while goes ahead of those who have.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item]):
    item: Item
    cost: float
    start: float  # tag
    number: int  # in order of arrival


class FairQueue(Generic[Item]):
    def __init__(self) -> None:
        self.cost = 0.0  # of all items that wait
        self._waiting: dict[str, deque[_Entry[Item]]] = {}  # by owner, none empty
        self._finish: dict[str, float] = {}  # tag of each owner's latest item, while it is in the future
        self._virtual_time = 0.0  # start tag of the item that left last
        self._num_pushed = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, owner: str, item: Item, cost: float) -> None:
        """Queue an item that will cost this much work, in any unit."""
        start = max(self._virtual_time, self._finish.get(owner, 0.0))
        self._finish[owner] = start + cost
        self._waiting.setdefault(owner, deque()).append(_Entry(item, cost, start, self._num_pushed))
        self._num_pushed += 1
        self.cost += cost

    def peek(self) -> Item:
        """The item whose turn is next; there must be one."""
        return self._waiting[self._next_owner()][0].item

    def pop(self) -> Item:
        """Take the item whose turn it is; there must be one."""
        owner = self._next_owner()
        entry = self._waiting[owner][0]
        self._virtual_time = entry.start
        self._take(owner, entry)
        self._finish = {owner: tag for owner, tag in self._finish.items() if tag > self._virtual_time}
        return entry.item

    def shed(self) -> Item:
        """Take the latest item of the owner who has most waiting, as there are too many."""
        owner = max(self._waiting, key=lambda o: (len(self._waiting[o]), self._waiting[o][-1].number))
        entry = self._waiting[owner][-1]
        self._take(owner, entry)
        return entry.item

    def remove(self, owner: str, item: Item) -> None:
        """Take an item out of turn; no effect if it is not here."""
        for entry in self._waiting.get(owner, ()):
            if entry.item is item:
                self._take(owner, entry)
                return

    def _next_owner(self) -> str:
        return min(self._waiting, key=lambda o: (self._waiting[o][0].start, self._waiting[o][0].number))

    def _take(self, owner: str, entry: _Entry[Item]) -> None:
        entries = self._waiting[owner]
        entries.remove(entry)
        if not entries:
            del self._waiting[owner]
        self.cost -= entry.cost

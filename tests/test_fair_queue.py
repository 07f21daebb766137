"""FairQueue: turns go to owners in equal shares of work, and a crowd gives way."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.fair_queue import FairQueue


def test_one_owner_is_served_in_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push("a", number, cost=10 - number)
    assert [queue.pop() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(queue) == 0 and queue.cost == 0


def test_a_thousand_of_one_do_not_delay_the_one_of_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(1000):
        queue.push("crowd", "crowd", cost=100)
    for _ in range(10):
        queue.pop()
    queue.push("guest", "guest", cost=100)
    assert "guest" in [queue.pop() for _ in range(2)]


def test_shares_are_of_work_and_not_of_numbers() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("long", "long", cost=30)
        queue.push("short", "short", cost=10)
    served = Counter(queue.pop() for _ in range(80))
    assert served["short"] == pytest.approx(3 * served["long"], abs=3)


def test_who_asks_again_and_again_does_not_starve_who_waits() -> None:
    """One request at a time, each sent when the last one was taken, is no way to the head of the queue."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push("waiting", "waiting", cost=10)
    served = []
    for _ in range(20):
        queue.push("eager", "eager", cost=10)
        served.append(queue.pop())
        if served[-1] == "waiting":
            queue.remove("eager", "eager")
    assert 8 <= served.count("waiting") <= 10


def test_an_idle_owner_saves_up_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("busy", "busy", cost=10)
        queue.pop()
    for owner in ("idle", "busy") * 10:
        queue.push(owner, owner, cost=10)
    first = [queue.pop() for _ in range(10)]
    assert abs(first.count("idle") - first.count("busy")) <= 2


def test_the_latest_of_the_largest_crowd_gives_way() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.push("crowd", f"crowd {number}", cost=1)
    queue.push("guest", "guest", cost=1)
    assert queue.shed() == "crowd 2"
    assert queue.shed() == "crowd 1"
    assert queue.shed() == "guest"  # as many as the crowd has, and came later
    assert [queue.pop()] == ["crowd 0"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 100)),
            st.tuples(st.sampled_from(["pop", "shed", "remove"]), st.sampled_from("abc"), st.just(0)),
        )
    )
)
def test_nothing_is_lost_or_given_twice(actions: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[tuple[int, str, int]] = FairQueue()
    here: list[tuple[int, str, int]] = []
    for number, (action, owner, cost) in enumerate(actions):
        if action == "push":
            here.append((number, owner, cost))
            queue.push(owner, here[-1], cost)
        elif action == "remove":
            mine = [item for item in here if item[1] == owner]
            if mine:
                queue.remove(owner, mine[0])
                here.remove(mine[0])
        elif here:
            expected = queue.peek() if action == "pop" else None
            taken = queue.pop() if action == "pop" else queue.shed()
            assert expected in (None, taken)
            here.remove(taken)
        assert len(queue) == len(here)
        assert queue.cost == sum(cost for _, _, cost in here)

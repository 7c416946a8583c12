"""Leases are renewed by the batch, in time, and the table keeps no message longer than the window does."""

from __future__ import annotations

import gc
import weakref

from engine_kit import deliveries, delivery, ids
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.contract import Delivery
from atleastonce.engine.leases import LeaseTable


def test_a_batch_is_due_after_a_third_of_its_lease_and_not_before() -> None:
    table = LeaseTable(30.0)
    batch = deliveries(3)
    assert table.next_due() is None
    table.add(batch, 100.0)
    assert table.next_due() == 110.0
    assert table.due(109.999) == []
    assert table.due(110.0) == batch
    assert table.next_due() is None
    assert table.due(1e9) == []


def test_batches_come_up_in_the_order_of_their_time() -> None:
    table = LeaseTable(3.0)
    table.add([delivery("late")], 2.0)
    table.add([delivery("early")], 1.0)
    table.add([], 0.0)
    assert table.next_due() == 2.0
    assert ids(table.due(2.5)) == ["early"]
    assert ids(table.due(3.0)) == ["late"]


def test_what_is_settled_or_lost_is_not_renewed() -> None:
    table = LeaseTable(3.0)
    batch = deliveries(4)
    table.add(batch, 0.0)
    batch[1].settled = True
    batch[2].lost = True
    assert ids(table.due(1.0)) == ["m0", "m3"]


def test_settled_messages_are_not_kept_until_their_batch_would_be_due() -> None:
    """Thousands settle in a third of a lease; keeping them would hold their bodies beyond the window's bytes."""
    table = LeaseTable(30.0)
    kept: list[weakref.ref[Body]] = []
    running = deliveries(10, prefix="slow")
    table.add(running, 0.0)
    for n in range(500):
        batch = deliveries(10, prefix=f"b{n}-")
        for item in batch:
            body = Body()
            item.raw = body
            kept.append(weakref.ref(body))
        table.add(batch, 0.0)
        for item in batch:
            item.settled = True
    del batch, item, body
    gc.collect()
    assert sum(1 for ref in kept if ref() is not None) < 100
    assert table.due(10.0) == running


class Body:
    """Something whose life can be watched."""


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "settle", "lose", "due"]),
            st.integers(0, 40),
            st.floats(0, 2, allow_subnormal=False),
        ),
        max_size=80,
    )
)
def test_everything_out_is_renewed_within_a_third_of_its_lease(script: list[tuple[str, int, float]]) -> None:
    """Against a plain dict of what is out and when it was last leased."""
    table = LeaseTable(3.0)
    leased: dict[Delivery, float] = {}
    now = 0.0
    for what, count, step in script:
        now += step
        if what == "add":
            batch = deliveries(count)
            table.add(batch, now)
            leased.update(dict.fromkeys(batch, now))
        elif what == "due":
            due = table.due(now)
            assert len(due) == len(set(due))
            assert set(due) == {item for item, since in leased.items() if since + 1.0 <= now}
            table.add(due, now)
            leased.update(dict.fromkeys(due, now))
        else:
            for item in list(leased)[:count]:
                item.settled, item.lost = what == "settle", what == "lose"
                del leased[item]
    left = set(leased)
    assert set(table.due(now + 1.0)) == left
    assert table.next_due() is None

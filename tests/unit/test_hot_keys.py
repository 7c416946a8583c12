"""Hot keys by name: in status, by messages and by time, for every kind of handler; and splitting one."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from atleastonce import ConfigurationError, Queue, Service, split_hot_key
from atleastonce.patterns.hot_keys import HotKeys


class Order(msgspec.Struct):
    customer: str


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)  # polling a condition with a deadline


def make(kind: str, seen: list[str]) -> tuple[Service, Queue[Any]]:
    service = Service("worker", broker=f"memory://{uuid.uuid4().hex}")
    work: Queue[Any] = Queue("work", Order, fifo=True, partitions=1)
    if kind == "async":

        @service.consumer(work, ordered=True)
        async def handle(order: Order) -> None:
            seen.append(order.customer)

    elif kind == "field":

        @service.consumer(work, ordered="customer")
        async def handle_field(order: Order) -> None:
            seen.append(order.customer)

    elif kind == "def":

        @service.consumer(work, hot_keys=True)
        def handle_sync(order: Order) -> None:
            if order.customer == "slow":
                time.sleep(0.002)  # the handler's work
            seen.append(order.customer)

    elif kind == "batch":

        @service.batch_consumer(work, hot_keys=True, max_messages=50, max_wait="5ms")
        async def handle_batch(orders: list[Order]) -> None:
            seen.extend(order.customer for order in orders)

    else:

        @service.consumer(work)
        async def handle_uncounted(order: Order) -> None:
            seen.append(order.customer)

    return service, work


@pytest.mark.parametrize("kind", ["async", "field", "def", "batch", "uncounted"])
async def test_a_key_that_stands_out_has_a_name_in_status(kind: str) -> None:
    seen: list[str] = []
    service, work = make(kind, seen)
    names = ["hot" if n % 4 == 0 else f"c{n}" for n in range(800)] + ["slow"] * 20
    async with service:
        await service.broker.publish_many(work, [Order(name) for name in names], key=lambda order: order.customer)
        await until(lambda: len(seen) == len(names))
        (home, *_) = service.status()
    found = {hot.key: hot for hot in home.hot_keys}
    if kind == "uncounted":
        assert not found
        return
    hot = found.get("'hot'") or found["b'hot'"]
    assert 0.2 <= hot.messages <= 0.4
    if kind == "def":
        assert found["b'slow'"].time > 0.4


def test_threads_that_count_at_once_lose_no_count_and_break_nothing() -> None:
    """A thread may be stopped anywhere, also while it merges what another one adds to."""
    hot = HotKeys(clock=lambda: 0.0)
    broken: list[BaseException] = []
    each, threads = 20_000, 4

    def count(me: int) -> None:
        try:
            for n in range(each):
                hot.add((me, n % 700), 0.0)
        except BaseException as error:  # noqa: BLE001 - shown below
            broken.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=count, args=(me,)) for me in range(threads)]
        for thread in running:
            thread.start()
        while any(thread.is_alive() for thread in running):
            hot.top()
    finally:
        sys.setswitchinterval(before)
    assert not broken
    hot.top()
    assert hot._messages.total == each * threads


@pytest.mark.parametrize("given", ["yes", 1, 0, []])
def test_whether_keys_are_counted_is_true_or_false(given: Any) -> None:
    service = Service("s")
    with pytest.raises(ConfigurationError, match=r"handle: hot_keys=.* must be True, False or None"):

        @service.consumer(Queue("work", dict), hot_keys=given)
        async def handle(order: dict[str, Any]) -> None: ...


def test_a_split_key_goes_to_as_many_lines() -> None:
    assert {split_hot_key("big", 4) for _ in range(500)} == {"big#0", "big#1", "big#2", "big#3"}
    assert {split_hot_key(b"\xff", 2) for _ in range(200)} == {b"\xff#0", b"\xff#1"}
    for none in (None, 5, ("big",), bytearray(b"big")):
        with pytest.raises(ConfigurationError, match=r"split_hot_key key=.*: give a message key, text or bytes"):
            split_hot_key(none, 4)  # type: ignore[type-var]
    for wrong in (0, -1, "4", 10_001):
        with pytest.raises(ConfigurationError, match="split_hot_key buckets"):
            split_hot_key("big", wrong)  # type: ignore[arg-type]

"""Handlers that end by themselves in what looks like the end of their task or loop: their message fails, and nobody else's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from once_kit import Database, Order, counts, dead_letters, until

from atleastonce import FailurePolicy, Inbox, Queue, Service, wire
from atleastonce.engine import pools
from atleastonce.engine.decision import Decision

MakeQueue = Callable[[str], Queue[Any]]
GUILTY = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SELF_CANCELLED", Decision(again=0.01, name="released"))


def register(service: Service, work: Queue[Any], kind: str, handle: Callable[[Order], None], **options: Any) -> None:
    """``handle`` as a handler of ``kind``, without retries."""

    async def one(order: Order) -> None:
        handle(order)

    def blocking(order: Order) -> None:
        handle(order)

    async def some(orders: list[Order]) -> None:
        for order in orders:
            handle(order)

    def some_blocking(orders: list[Order]) -> None:
        for order in orders:
            handle(order)

    policy = FailurePolicy(in_place=None)
    if "batch" in kind:
        batch = service.batch_consumer(work, max_messages=6, max_wait="1s", failure=policy, **options)
        batch(some if kind == "async batch" else some_blocking)
    else:
        service.consumer(work, failure=policy, **options)(one if kind == "async def" else blocking)


@pytest.mark.parametrize("kind", ["async def", "def", "async batch", "def batch"])
async def test_a_handler_that_always_cancels_itself_ends_in_the_dead_letters_and_its_neighbours_are_done(
    tmp_path: Path, queue: MakeQueue, kind: str
) -> None:
    work, runs = queue("work"), Counter[int]()
    service = Service("worker", broker=f"sqlite:///{tmp_path}/broker.db")

    def handle(order: Order) -> None:
        runs[order.n] += 1
        if order.n == GUILTY:
            raise asyncio.CancelledError

    register(service, work, kind, handle)
    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(6)])
        await until(lambda: counts(service)["done"] == 5 and counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
    again = pools.SELF_CANCELLED_RUNS
    assert letter.message.headers.get(wire.ERROR_TYPE) == "HandlerCancelled"
    assert f"run {again + 1} of this delivery ended in CancelledError" in (
        letter.message.headers.get(wire.ERROR_MESSAGE) or ""
    )
    assert "raise asyncio.CancelledError" in (letter.message.headers.get(wire.TRACEBACK) or ""), "it says where"
    # Of a list: what came before the guilty one runs with it, and then alone; what came behind it, alone.
    lists = "batch" in kind
    assert [runs[n] for n in range(GUILTY)] == [1 + lists] * GUILTY
    assert [runs[n] for n in (4, 5)] == [1, 1]
    assert runs[GUILTY] == again + 1 + lists


@pytest.mark.parametrize("inbox", [False, True], ids=["plain", "inbox"])
@pytest.mark.parametrize("kind", ["def", "def batch"])
async def test_a_def_handler_that_raises_generator_exit_fails_its_message_alone(
    tmp_path: Path, queue: MakeQueue, kind: str, inbox: bool
) -> None:
    work = queue("work")
    service = Service("worker", broker=f"sqlite:///{tmp_path}/broker.db")

    def handle(order: Order) -> None:
        if order.n == GUILTY:
            raise GeneratorExit

    database = Database("sqlite", str(tmp_path / "shop.db"))
    register(service, work, kind, handle, **({"idempotency": Inbox(database.make())} if inbox else {}))
    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(6)])
        await until(lambda: counts(service)["done"] == 5 and counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
    assert "GeneratorExit" in (letter.message.headers.get(wire.TRACEBACK) or "")

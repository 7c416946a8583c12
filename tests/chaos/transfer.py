"""A service that hands off from one Kafka queue to another in transactions, and kills its own process at one chosen step. Run by
`test_kill_transactions`.

Usage: python transfer.py URL RUN KIND MEMBER POINT NUMBER

``KIND`` is ``async``, ``sync``, ``batch`` or ``deadly`` (one order ends the process whenever it is handled). ``MEMBER`` is the
name of a static member, or empty. ``POINT`` is ``sent`` (all is sent, the offsets are not), ``offsets`` (only the commit is
missing) or ``committed`` (and nobody was told); at the transaction of that ``NUMBER`` the process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import msgspec

from atleastonce import Context, DeadLetter, FailurePolicy, Queue, RetryChain, Service
from atleastonce.adapters.kafka.transactions import Transactions

HOP, DEAD = 3, 7  # the last digit of what fails once, and of what is given up
DEADLY, DIED = 50, 9


class Order(msgspec.Struct):
    n: int


def names(run: str) -> tuple[Queue[Any], Queue[Any]]:
    return Queue(f"in.{run}", Order, partitions=2), Queue(f"out.{run}", Order, partitions=2)


def make(url: str, run: str, kind: str, member: str) -> Service:
    source, onward = names(run)
    options: dict[str, Any] = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "transaction.timeout.ms": 3000}
    if member:
        options["group.instance.id"] = member
    service = Service("transfer", broker=url, options=options)
    policy = FailurePolicy(in_place=None, chain=RetryChain("200ms"), crash_limit=1)
    settings: dict[str, Any] = {"failure": policy, "transactions": True}

    def pass_on(order: Order, ctx: Context) -> None:
        if kind == "deadly" and order.n == DEADLY:
            os._exit(DIED)
        if order.n % 10 == DEAD:
            raise DeadLetter("seven")
        if order.n % 10 == HOP and ctx.attempt == 1:
            ctx.publish(onward, Order(-order.n))  # of a run that fails: never seen
            raise ValueError("three")
        ctx.publish(onward, order)

    if kind in ("async", "deadly"):

        @service.consumer(source, **settings)
        async def handle(order: Order, ctx: Context) -> None:
            await asyncio.sleep(0)
            pass_on(order, ctx)

    elif kind == "sync":

        @service.consumer(source, **settings)
        def handle_on_a_thread(order: Order, ctx: Context) -> None:
            pass_on(order, ctx)

    else:

        @service.batch_consumer(source, max_messages=20, max_wait="20ms", **settings)
        async def handle_many(orders: list[Order], contexts: list[Context]) -> list[Exception | None]:
            return [attempt(order, ctx) for order, ctx in zip(orders, contexts, strict=True)]

        def attempt(order: Order, ctx: Context) -> Exception | None:
            try:
                pass_on(order, ctx)
            except (ValueError, DeadLetter) as error:
                return error
            return None

    return service


def mine(point: str, number: int) -> None:
    """Lay it into every transaction's steps."""
    insist = Transactions._insist
    left = number

    def step(self: Transactions, call: Any, deadline: float) -> None:
        nonlocal left
        name = str(call)
        if "send_offsets" in name and point == "sent":
            left -= 1
            if not left:
                assert self._producer is not None
                while len(self._producer):
                    self._producer.flush(1)
                kill()
        insist(self, call, deadline)
        here = ("send_offsets" in name and point == "offsets") or (
            "commit_transaction" in name and point == "committed"
        )
        if here:
            left -= 1
            if not left:
                kill()

    Transactions._insist = step  # type: ignore[method-assign]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


async def main(url: str, run: str, kind: str, member: str, point: str, number: str) -> None:
    mine(point, int(number))
    async with make(url, run, kind, member):
        await asyncio.sleep(60)  # ends long before, or the test fails


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

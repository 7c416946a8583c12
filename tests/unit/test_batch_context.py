"""A batch handler's contexts, one for each of its messages."""

from __future__ import annotations

import asyncio

import pytest

from atleastonce import ConfigurationError, Context, Queue, Service


async def test_each_message_of_a_batch_has_its_own_context() -> None:
    service = Service("s", broker="memory://")
    numbers = Queue("numbers", int)
    seen: dict[str, int] = {}
    done = asyncio.Event()

    @service.batch_consumer(numbers, max_messages=3, max_wait="10ms", retry=["1ms"])
    async def take(batch: list[int], contexts: list[Context]) -> None:
        for number, context in zip(batch, contexts, strict=True):
            seen[context.message.id] = number
        if len(seen) == 5:
            done.set()

    async with service:
        await service.broker.publish_many(numbers, range(5), id=lambda number: f"id-{number}")
        async with asyncio.timeout(10):
            await done.wait()
    assert seen == {f"id-{number}": number for number in range(5)}


def test_a_batch_takes_a_list_of_contexts_and_a_message_one() -> None:
    service = Service("s", broker="memory://")

    async def one(batch: list[int], context: Context) -> None: ...

    async def many(number: int, contexts: list[Context]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"a list\[Context\] by annotation"):
        service.batch_consumer(Queue("a"))(one)
    with pytest.raises(ConfigurationError, match="a Context by annotation"):
        service.consumer(Queue("b"))(many)

"""SQS' own redrive, on the emulator that has it (ElasticMQ); ministack, which has none, shows the refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqs_kit import declared, message, opened, reading, sent, take

from atleastonce.adapters import open_adapter
from atleastonce.brokers import Running
from atleastonce.channels import Queue, Source
from atleastonce.cli.app import run
from atleastonce.contract import ACK
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.patterns.redrive import DeadLetters, redrive_natively

MakeQueue = Callable[..., Queue[Any]]


async def test_sqs_moves_all_dead_letters_back_by_itself(elasticmq_broker: Running, queue: MakeQueue) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel
    url = elasticmq_broker.url
    async with opened(url) as adapter, declared(adapter, work, dead_letters=(dead,)):
        batch = [message(headers=[("alo-redrives", "9"), ("h", "v")]) for _ in range(25)]
        await sent(adapter, dead, *batch)
        moved = await DeadLetters(adapter, Source(work)).redrive_natively()
        assert (moved.redriven, moved.failed, moved.stopped) == (25, 0, "")
        async with reading(adapter, work) as reader:
            came = await take(reader, 25)
            assert {each.message.id: each.message.headers for each in came} == {each.id: each.headers for each in batch}
            await reader.settle([(each, ACK) for each in came])


async def test_a_move_that_is_interrupted_leaves_the_rest_where_it_was(
    elasticmq_broker: Running, queue: MakeQueue
) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel
    async with opened(elasticmq_broker.url) as adapter, declared(adapter, work, dead_letters=(dead,)):
        await sent(adapter, dead, *[message() for _ in range(20)])
        stopping = asyncio.Event()
        stopping.set()
        home = Source(work)
        moved = await redrive_natively(adapter, home, rate=1, stopping=stopping)
        assert moved.stopped == "interrupted"
        assert moved.redriven < 20
        left = await adapter.backlog(Source(dead))
        assert left.waiting is not None
        assert left.waiting > 0


async def test_what_sqs_cannot_move_is_refused(elasticmq_broker: Running, sqs_url: str, queue: MakeQueue) -> None:
    work, fifo = queue(), queue("f", fifo=True)
    dead, under = Source(work).dead_letter_channel, Source(fifo).dead_letter_channel
    async with opened(elasticmq_broker.url) as adapter:
        home = Source(work)
        with pytest.raises(NotFound):
            await redrive_natively(adapter, home)
        async with declared(adapter, work, fifo, dead_letters=(dead, under)):
            with pytest.raises(ConfigurationError, match="500 messages a second"):
                await redrive_natively(adapter, home, rate=501)
            with pytest.raises(ConfigurationError, match="one is FIFO, the other is not"):
                await redrive_natively(adapter, Source(fifo))
    async with opened(sqs_url) as adapter, declared(adapter, work, dead_letters=(dead,)):
        with pytest.raises(ConfigurationError, match="without --native"):
            await redrive_natively(adapter, Source(work))
    memory = open_adapter("memory://native")
    await memory.open()
    with pytest.raises(ConfigurationError, match="memory has no move of its own"):
        await redrive_natively(memory, Source(work))
    await memory.close()


@pytest.mark.parametrize("more", [["--max", "3"], ["--id", "x"], ["--dry-run"], ["--max-redrives", "2"]])
def test_the_command_refuses_what_sqs_cannot_do(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["dlq", "redrive", "--broker", "sqs://127.0.0.1:1", "--channel", "q", "--native", *more])
    assert code == 2
    assert "--native lets the broker move everything as it is" in capsys.readouterr().err


def test_the_command_moves(elasticmq_broker: Running, queue: MakeQueue, capsys: pytest.CaptureFixture[str]) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel

    async def prepare() -> None:
        from atleastonce.contract import Topology

        async with opened(elasticmq_broker.url) as adapter:
            await adapter.declare(Topology(channels=(work,), sources=(Source(work),), dead_letters=(dead,)))
            await sent(adapter, dead, message(), message())

    asyncio.run(prepare())
    code = run(["dlq", "redrive", "--broker", elasticmq_broker.url, "--channel", work.name, "--native"])
    assert code == 0
    assert capsys.readouterr().out.startswith("2 redriven")

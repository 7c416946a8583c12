"""Header names that are not UTF-8, from a producer that writes bytes: the client ends the process if it is asked for them twice."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from kafka_kit import eventually, fresh
from raw_produce import produce

from atleastonce import Context, FailurePolicy, Queue, RetryChain, Service, connect, wire


@pytest.mark.parametrize("place", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize("shared", [False, True], ids=["group", "share-group"])
async def test_a_record_whose_header_names_are_no_text_costs_itself_alone(
    kafka_url: str, place: int, shared: bool
) -> None:
    parts = urlsplit(kafka_url)
    work = Queue[Any](fresh().name, bytes, partitions=1)
    service = Service("names", broker=f"{kafka_url}?share.groups=true" if shared else kafka_url)
    handled: list[tuple[bytes, int]] = []

    @service.consumer(work, failure=FailurePolicy(chain=None))
    async def handle(body: bytes, ctx: Context) -> None:
        handled.append((body, len(ctx.message.headers.items())))

    bodies = [b"one", b"two", b"three"]
    names = [b"\xff\xfe" if number == place else b"good" for number in range(3)]
    async with service:
        records = [(body, [(name, b"v")]) for body, name in zip(bodies, names, strict=True)]
        await produce((str(parts.hostname), parts.port or 9092), work.name, 0, records)
        await eventually(lambda: _counts(service) == {"done": 2, "dead": 1}, "all ended", 60)
        assert sorted(handled) == sorted((body, 1) for body in bodies if body != bodies[place])


async def test_one_that_fails_among_others_is_a_failure_of_its_decoding_and_they_are_tried_again(
    kafka_url: str,
) -> None:
    """The copies of what fails alike are made for a list, when it leaves."""
    parts = urlsplit(kafka_url)
    work = Queue[Any](fresh().name, bytes, partitions=1)
    service = Service("names", broker=kafka_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("1h")))
    async def handle(_: bytes) -> None:
        raise RuntimeError("out of order")

    async with service, connect(kafka_url) as broker:
        names = [b"\xff\xfe" if number == 2 else b"good" for number in range(5)]
        records = [(str(number).encode(), [(name, b"v")]) for number, name in enumerate(names)]
        await produce((str(parts.hostname), parts.port or 9092), work.name, 0, records)
        await eventually(lambda: service.status()[0].counts.get("retried") == 4, "four wait", 60)
        await eventually(lambda: _counts(service) == {"done": 0, "dead": 1}, "one is dead", 60)
        await eventually(lambda: not service.status()[0].in_flight, "all are settled", 60)
        (group,) = await broker.dead_letters(work).groups()
        assert (group.count, group.stage) == (1, "decode")


async def test_an_answer_that_cannot_be_read_is_dropped_and_its_inbox_lives_on(kafka_url: str) -> None:
    """Whoever sees a request can write to its inbox."""
    parts = urlsplit(kafka_url)
    quotes = Queue[Any](fresh().name, partitions=1)
    service = Service("names", broker=kafka_url)
    addresses: list[str] = []

    @service.responder(quotes)
    async def quote(body: dict[str, int], ctx: Context) -> int:
        addresses.append(ctx.headers.get(wire.REPLY_TO) or "")
        return body["n"] + 1

    async with service, connect(kafka_url) as broker:
        assert await broker.request(quotes, {"n": 1}, timeout="30s") == 2
        topic, partition, key = addresses[0].split("/")
        address = (str(parts.hostname), parts.port or 9092)
        for number in range(1, 4):
            await produce(address, topic, int(partition), [(b"x", [(b"\xff\xfe", b"v")])], key.encode())
            await eventually(lambda number=number: broker.requests.unknown == number, "it is counted", 30)
            assert await broker.request(quotes, {"n": number}, timeout="30s") == number + 1


def _counts(service: Service) -> dict[str, int]:
    counts = service.status()[0].counts
    return {name: counts.get(name, 0) for name in ("done", "dead")}

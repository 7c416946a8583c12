"""Channels in parts: where each key is, what they need on a broker, and who ends up with which part."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import Queue, Source, Topic
from atleastonce.adapters import open_adapter
from atleastonce.contract import Backlog, Describes, Drift, Outgoing, Topology
from atleastonce.message import Message
from atleastonce.parts import (
    backlog,
    declare,
    in_parts,
    is_parted,
    part_at,
    part_number,
    parts_of,
    pieces,
    routed,
    topology,
)
from atleastonce.parts.sharing import excess

PARTED = Queue[Any]("orders", partitions=4, single_active=True)
TOPIC = Topic[Any]("changes", partitions=2, single_active=True)


@pytest.mark.parametrize(
    ("key", "of_8", "of_12"),
    [
        (b"", 0, 0),
        (b"c-1", 6, 2),
        (b"123456789", 0xCBF43926 % 8, 0xCBF43926 % 12),  # the check value of every table of CRCs
        ("漢".encode(), 0, 0),
        (b"\x00\xff" * 9, 2, 2),
        (b"k" * 1_000_000, 0x6134618E % 8, 0x6134618E % 12),
    ],
)
def test_a_key_is_in_the_same_part_for_ever(key: bytes, of_8: int, of_12: int) -> None:
    assert (part_number(key, 8), part_number(key, 12)) == (of_8, of_12)


@pytest.mark.parametrize(
    ("channel", "parted"),
    [
        (PARTED, True),
        (TOPIC, True),
        (Source(TOPIC, "billing"), True),
        (Queue("q", partitions=4), False),
        (Queue("q", single_active=True), False),
        (Queue("q", partitions=1, single_active=True), False),
        (Queue("q", partitions=4, single_active=True, requests=True), False),
        (part_at(PARTED, 3), False),
        (Source(PARTED).dead_letter_channel, False),
        (Source(PARTED).suspects_channel, False),
        (Source(TOPIC, "billing").redrive_channel, False),
        (Source(TOPIC, "billing").retry_channel(5), False),
    ],
)
def test_what_asks_for_one_reader_and_for_partitions_has_parts(channel: Any, parted: bool) -> None:
    assert is_parted(channel) is parted


def test_parts_are_channels_whose_failures_are_kept_together() -> None:
    assert [part.name for part in parts_of(PARTED)] == ["orders.p0", "orders.p1", "orders.p2", "orders.p3"]
    each = parts_of(Source(TOPIC, "billing"))
    assert [part.name for part in each] == ["changes.p0.billing", "changes.p1.billing"]
    assert {part.dead_letter_channel.name for part in each} == {"changes.billing.dlq"}
    assert {part.suspects_channel.name for part in each} == {"changes.billing.suspects"}
    assert Source(part_at(PARTED, 2)).dead_letter_channel == Source(PARTED).dead_letter_channel


def test_a_list_goes_to_the_parts_of_its_keys_in_its_order() -> None:
    plain, group = Queue[Any]("plain"), Source(TOPIC, "billing")
    batch = [
        Outgoing(destination, Message(f"m{n}", b"", None if n % 5 == 0 else b"k%d" % (n % 3)), 2.0)
        for n, destination in enumerate([PARTED, plain, group, TOPIC] * 5)
    ]
    sent = routed(batch)
    assert [item.message for item in sent] == [item.message for item in batch]
    assert {item.delay for item in sent} == {2.0}
    for item, was in zip(sent, batch, strict=True):
        if was.destination is plain:
            assert item is was
        else:
            parts = parts_of(was.destination)
            key = item.message.key if item.message.key is not None else item.message.id.encode()
            assert item.destination == parts[part_number(key, len(parts))]
    untouched = [item for item in batch if item.destination is plain]
    assert routed(untouched) is untouched


def test_what_has_no_key_is_spread_by_its_id() -> None:
    batch = [Outgoing(PARTED, Message(f"m{n}", b"")) for n in range(400)]
    counts = [sum(item.destination == part for item in routed(batch)) for part in parts_of(PARTED)]
    assert min(counts) > 60, counts


@pytest.mark.parametrize(
    ("url", "kind"), [("rabbitmq://mq", "queue"), ("redis://redis", "stream"), ("nats://nats", "stream")]
)
def test_a_broker_without_partitions_gets_each_part_and_one_queue_for_their_dead_letters(url: str, kind: str) -> None:
    adapter = open_adapter(url)
    assert isinstance(adapter, Describes)
    source = Source(TOPIC, "billing")
    found = adapter.describe(Topology((TOPIC,), (source,), dead_letters=(source.dead_letter_channel,)))
    names = " ".join(resource.shown or resource.name for resource in found)
    for part in ("changes.p0", "changes.p1"):
        assert part in names
    assert "changes.p2" not in names
    assert sum((resource.shown or resource.name).endswith("changes.billing.dlq") for resource in found) >= 1
    nets = [resource.settings.get("arguments", {}).get("x-dead-letter-routing-key") for resource in found]
    assert set(filter(None, nets)) == ({"changes.billing.dlq"} if kind == "queue" else set())


@pytest.mark.parametrize("url", ["kafka://k", "memory://", "sqs://eu-west-1"])
def test_a_broker_that_keeps_order_by_itself_gets_one_channel(url: str) -> None:
    adapter = open_adapter(url)
    assert not adapter.capabilities.parts
    if isinstance(adapter, Describes):
        found = adapter.describe(Topology((PARTED,), (Source(PARTED),)))
        assert not [resource for resource in found if ".p0" in (resource.shown or resource.name)]


async def test_the_backlog_is_that_of_all_parts_and_unknown_if_one_is() -> None:
    known = {part.name: Backlog(n, 2 * n, 0, float(n)) for n, part in enumerate(parts_of(Source(PARTED)))}

    async def measure(source: Source) -> Backlog:
        return known[source.name]

    assert await backlog(Source(PARTED), measure) == Backlog(6, 12, 0, 3.0)
    known["orders.p1"] = Backlog(detail="no such queue")
    assert await backlog(Source(PARTED), measure) == Backlog(detail="no such queue")


ALONE = Queue[Any]("orders", single_active=True)


@pytest.mark.parametrize(
    ("channel", "there", "wanted"),
    [
        (PARTED, [], None),
        (PARTED, [f"orders.p{n}" for n in range(4)], None),
        (PARTED, [f"orders.p{n}" for n in range(3)], Drift("orders", "partitions", "4", "3")),
        (PARTED, [f"orders.p{n}" for n in range(6)], Drift("orders", "partitions", "4", "6", breaks=True)),
        (PARTED, ["orders"], Drift("orders", "partitions", "4", "1", breaks=True)),
        (ALONE, ["orders"], None),
        (ALONE, [f"orders.p{n}" for n in range(6)], Drift("orders", "partitions", "1", "6", breaks=True)),
    ],
)
@pytest.mark.parametrize("create", [True, False])
async def test_another_number_of_parts_is_told(
    channel: Queue[Any], there: list[str], wanted: Drift | None, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "PATIENCE", 0.0)
    made = set(there)

    async def one(wanted: Topology, /, *, create: bool) -> list[Drift]:
        names = [each.name for each in wanted.channels]
        missing = [] if create else [Drift(name, "missing", "queue", "nothing") for name in names if name not in made]
        made.update(names if create else ())
        return missing

    drifts = await declare(Topology((channel,), (Source(channel),)), one, create=create)
    assert [drift for drift in drifts if drift.setting != "missing"] == ([] if wanted is None else [wanted])
    if wanted is not None and wanted.breaks:
        assert made == set(there)
    elif create:
        assert {part.name for part in pieces(channel)} <= made


async def test_parts_that_somebody_is_just_making_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "PATIENCE", 0.01)
    made = {"orders.p0", "orders.p1"}
    looks = 0

    async def one(wanted: Topology, /, *, create: bool) -> list[Drift]:
        nonlocal looks
        looks += 1
        missing = [Drift(each.name, "missing", "queue", "nothing") for each in wanted.channels if each.name not in made]
        if wanted.channels[0].name == "orders.p3":  # looked at, and made right after
            made.update(part.name for part in parts_of(PARTED))
        return [] if create else missing

    assert await declare(Topology((PARTED,), (Source(PARTED),)), one, create=True) == []
    assert looks == 6


def test_what_has_no_parts_is_declared_as_it_is() -> None:
    plain = Topology((Queue("q"),), (Source(Queue("q")),))
    assert in_parts(plain) is plain
    assert in_parts(msgspec.structs.replace(plain, channels=(Queue("q"), TOPIC))).sources == plain.sources


@given(st.integers(1, 24), st.integers(1, 9), st.integers(0, 2**32))
def test_what_is_given_up_comes_to_rest_with_even_shares(parts: int, readers: int, seed: int) -> None:
    """A line for each part, as a broker keeps it: who gives up goes to its end, and its head is the reader."""
    chance = random.Random(seed)
    lines = [list(range(readers)) for _ in range(parts)]
    for _ in range(4 * parts * readers + 1):
        held = {reader: [line for line in lines if line[0] == reader] for reader in range(readers)}
        beyond = [reader for reader in held if excess(len(held[reader]), parts, readers)]
        if not beyond:
            break
        reader = chance.choice(beyond)
        for line in chance.sample(held[reader], excess(len(held[reader]), parts, readers)):
            line.append(line.pop(0))
    counts = [len(held[reader]) for reader in range(readers)]
    assert max(counts) <= -(-parts // readers), counts

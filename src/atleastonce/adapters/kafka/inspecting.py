"""Topics' settings and copies, what we may do to them, and what the cluster does by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AclOperation, ConfigResource, ResourceType  # type: ignore[attr-defined]

from atleastonce.adapters.kafka.admin import MISSING, Admin
from atleastonce.contract import Fact, Topology, Trait
from atleastonce.errors import BrokerUnavailable, PermissionDenied

_RIGHTS: Final = ((AclOperation.READ, "read", "READ"), (AclOperation.WRITE, "write", "WRITE"))
_WHO: Final = "the cluster"


async def inspect(admin: Admin, topology: Topology, address: str) -> list[Fact]:
    """See `Inspects.inspect`: three questions for all topics together, and one for the cluster."""
    channels = (*topology.channels, *topology.dead_letters, *(source.channel for source in topology.sources))
    names = dict.fromkeys([each.name for each in channels] + [delay.channel.name for delay in topology.delays])
    collection = TopicCollection(list(names))
    answers = await admin.ask(
        "looking at topics",
        lambda client, seconds: client.describe_topics(
            collection, include_authorized_operations=True, request_timeout=seconds
        ),
        absent=MISSING,
    )
    topics = {name: found for name, found in answers.items() if found is not None}
    configs: Mapping[str, Mapping[str, str]] = {}
    with contextlib.suppress(PermissionDenied):
        configs = await admin.configs(topics)
    nodes, facts = await _cluster(admin, address)
    for name, found in topics.items():
        facts += _topic(name, found, configs.get(name, {}), nodes)
    return facts


async def _cluster(admin: Admin, address: str) -> tuple[int, list[Fact]]:
    """How many brokers there are, 0 where that is not told; and what holds for all topics."""
    try:
        answer = await admin.ask(_WHO, lambda client, seconds: {_WHO: client.describe_cluster(request_timeout=seconds)})
        nodes = answer[_WHO].nodes
        resource = ConfigResource(ResourceType.BROKER, str(nodes[0].id))
        found = await admin.ask(
            "the broker's settings",
            lambda client, seconds: client.describe_configs([resource], request_timeout=seconds),
        )
    except (PermissionDenied, BrokerUnavailable):
        return 0, []
    (entries,) = found.values()
    name = "auto.create.topics.enable"
    makes = name in entries and entries[name].value == "true"
    return len(nodes), [Fact(address, Trait.AUTO_CREATES, name, "true")] if makes else []


def _topic(name: str, found: Any, config: Mapping[str, str], nodes: int) -> Iterator[Fact]:
    number = _numbers(config)
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy:
        yield Fact(name, Trait.COMPACTS, "cleanup.policy", policy)
    if "delete" in policy:
        kept, size = number.get("retention.ms", -1), number.get("retention.bytes", -1)
        if kept >= 0:
            yield Fact(name, Trait.RETENTION, "retention.ms", str(kept), kept / 1000)
        if size >= 0:
            yield Fact(name, Trait.DROPS, "retention.bytes", str(size), size)
    if (largest := number.get("max.message.bytes")) is not None:
        yield Fact(name, Trait.MAX_BYTES, "max.message.bytes", str(largest), largest)
    yield from _copies(name, min((len(each.replicas) for each in found.partitions), default=0), config, nodes)
    if found.authorized_operations:  # None: the broker does not tell
        allowed = set(found.authorized_operations)
        for operation, doing, setting in _RIGHTS:
            if operation not in allowed:
                yield Fact(name, Trait.DENIED, setting, doing)


def _copies(name: str, copies: int, config: Mapping[str, str], nodes: int) -> Iterator[Fact]:
    if not copies:
        return
    setting = "min.insync.replicas"
    needed = _numbers(config).get(setting, 1)
    if needed > copies:
        yield Fact(name, Trait.REFUSES, setting, str(needed), copies)
    elif needed == 1 and copies > 1:
        yield Fact(name, Trait.ONE_CONFIRMS, setting, "1", copies)
    if copies == 1 and nodes:
        yield Fact(name, Trait.ONE_NODE if nodes == 1 else Trait.ONE_COPY, "replication.factor", "1", nodes)
    if copies > 1 and config.get("unclean.leader.election.enable") == "true":
        yield Fact(name, Trait.UNCLEAN, "unclean.leader.election.enable", "true")


def _numbers(config: Mapping[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in config.items() if value.removeprefix("-").isdigit()}

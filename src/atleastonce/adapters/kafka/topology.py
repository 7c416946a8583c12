"""`Adapter.declare`: topics with partitions and retention that keep what the library promises; and how others differ."""

from __future__ import annotations

from typing import Any

from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.config import Settings
from atleastonce.channels import Channel
from atleastonce.contract import Drift, Resource, Topology

_DAY_MS = 24 * 3600 * 1000


class _Plan:
    """One topic as it should be."""

    def __init__(self, channel: Channel[Any], partitions: int | None) -> None:
        self.name = channel.name
        self.partitions = partitions
        self.needs_retention = 0
        """Milliseconds below which waiting messages would be deleted before their time."""
        self.config = {name: _text(value) for name, value in channel.options.get("kafka", {}).items()}

    def keep(self, retention: int, needed: int, largest: int) -> None:
        """Keep copies of up to ``largest`` bytes for ``retention`` ms, unless the channel's own options say otherwise."""
        self.needs_retention = max(self.needs_retention, needed)
        self.config.setdefault("cleanup.policy", "delete")
        self.config.setdefault("max.message.bytes", str(largest))  # a copy is larger than its original
        self.config.setdefault("retention.ms", str(retention))


def _plans(settings: Settings, topology: Topology) -> dict[str, _Plan]:
    """Every topic as it should be, by name."""
    plans: dict[str, _Plan] = {}

    def plan(channel: Channel[Any], partitions: int | None = None) -> _Plan:
        known = plans.get(channel.name)
        if known is None:
            known = plans[channel.name] = _Plan(channel, channel.partitions or partitions)
        elif known.partitions is None:
            known.partitions = channel.partitions or partitions
        return known

    for channel in topology.channels:
        plan(channel)
    for source in topology.sources:
        plan(source.channel)
    for delay in topology.delays:
        room = plan(delay.channel, delay.back_to.channel.partitions)
        needed = int(delay.delay * 1000)
        room.keep(max(7 * _DAY_MS, 2 * needed), needed, settings.copy_limit)
    for queue in topology.dead_letters:
        plan(queue).keep(14 * _DAY_MS, 0, settings.copy_limit)
    return plans


def _homes(topology: Topology) -> dict[str, str]:
    """The topic to which each waiting room leads: a retry's key stays on one partition number only if there are as many."""
    return {delay.channel.name: delay.back_to.channel.name for delay in topology.delays}


def describe(settings: Settings, topology: Topology) -> list[Resource]:
    """See `Describes.describe`. Partitions are those with which a topic would be made now; what is there may have others."""
    plans, homes = _plans(settings, topology), _homes(topology)

    def partitions(name: str) -> int:
        home = homes.get(name, "")
        like_home = plans[home].partitions if home in plans else None
        return plans[name].partitions or like_home or settings.partitions

    return [
        Resource(
            "topic",
            name,
            {"partitions": partitions(name), "replication.factor": settings.replication, "config": wanted.config},
        )
        for name, wanted in plans.items()
    ]


def server(settings: Settings) -> dict[str, Any]:
    """See `Describes.server`."""
    client = settings.client
    return {
        "servers": settings.servers.split(","),
        "security": str(client.get("security.protocol", "PLAINTEXT")).upper(),
        "mechanism": str(client.get("sasl.mechanism", client.get("sasl.mechanisms", ""))).upper(),
        "reset": settings.reset,
    }


async def declare(admin: Admin, settings: Settings, topology: Topology, *, create: bool) -> list[Drift]:
    """See `Adapter.declare`."""
    plans, homes = _plans(settings, topology), _homes(topology)
    found = await admin.partitions({*plans, *homes.values()})
    missing: list[NewTopic] = []
    drift: list[Drift] = []
    for name, wanted in plans.items():
        if found[name] is None:
            home = homes.get(name, "")
            like_home = plans[home].partitions if home in plans else None
            partitions = wanted.partitions or found.get(home) or like_home or settings.partitions
            missing.append(NewTopic(name, partitions, settings.replication, config=wanted.config))
    if create:
        await admin.create(missing)
    else:
        drift += [Drift(topic.topic, "missing", "a topic", "nothing", breaks=True) for topic in missing]
    made = {topic.topic for topic in missing}
    existing = [wanted for name, wanted in plans.items() if name not in made]
    configs = await admin.configs(wanted.name for wanted in existing if wanted.config)
    for wanted in existing:
        drift += _differences(wanted, found[wanted.name] or 0, configs.get(wanted.name, {}))
    return drift


def _differences(wanted: _Plan, partitions: int, config: dict[str, str]) -> list[Drift]:
    drift: list[Drift] = []
    if wanted.partitions is not None and partitions not in (0, wanted.partitions):
        drift.append(Drift(wanted.name, "partitions", str(wanted.partitions), str(partitions)))
    for name, value in wanted.config.items():
        found = config.get(name, "")
        if found == value:
            continue
        if name == "max.message.bytes":
            if found.isdigit() and int(found) >= int(value):
                continue  # more room is fine
            drift.append(Drift(wanted.name, name, value, found))
        elif name == "retention.ms":
            kept = int(found) if found.lstrip("-").isdigit() else -1
            if kept < 0 or kept >= int(value):
                continue  # longer is fine
            drift.append(Drift(wanted.name, name, value, found, breaks=kept < wanted.needs_retention))
        else:
            drift.append(Drift(wanted.name, name, value, found, breaks=name == "cleanup.policy"))
    return drift


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""The settings of share groups. The broker keeps them for each group, and its own defaults lose messages: what was published before
the first reader came, and what was handed out five times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.config import Settings
from atleastonce.contract import Drift
from atleastonce.errors import BrokerUnavailable, ConfigurationError

RESET: Final = "share.auto.offset.reset"
LOCK: Final = "share.record.lock.duration.ms"
LIMIT: Final = "share.delivery.count.limit"
ISOLATION: Final = "share.isolation.level"

DELIVERIES: Final = 10
"""Hand-outs after which a record is archived, in groups whose settings we make: the most that brokers allow by default."""

SUSPECTED: Final = 3
"""From this hand-out on a record is moved aside instead of run, by the engine: nothing may keep it from being handed out."""

LEAST_DELIVERIES: Final = SUSPECTED + 2
"""The fewest with which a source is read: two more are for what goes wrong while it is moved aside."""

NO_SHARE_GROUPS: Final = (
    "this cluster has no share groups: share.groups=true needs brokers from 4.2 with the feature on, which "
    "`kafka-features.sh upgrade --feature share.version=1` switches; or leave share.groups away"
)


class Terms(NamedTuple):
    """How a share group hands out.

    Attributes:
        lock: seconds for which a record is its reader's.
        limit: hand-outs after which it is archived, which nobody is told.
    """

    lock: float
    limit: int


class _Setting(NamedTuple):
    value: str
    own: bool
    """Whether somebody set it for this group."""


def wanted(settings: Settings) -> dict[str, str]:
    """What we set for a group of which nobody has."""
    return {
        RESET: settings.reset,
        ISOLATION: "read_uncommitted" if settings.reads_uncommitted else "read_committed",
        LOCK: str(round(settings.share_lock * 1000)),
        LIMIT: str(DELIVERIES),
    }


async def declare(admin: Admin, settings: Settings, groups: Mapping[str, str], *, create: bool) -> list[Drift]:
    """Set what nobody has set, of ``groups`` (each with the name that its source has); tell how the rest differs.

    Raises:
        ConfigurationError: no share groups here, or the broker's limits are narrower.
    """
    found = await read(admin, groups)
    ours, drifts = wanted(settings), []
    for group, name in groups.items():
        missing = {key: value for key, value in ours.items() if not found[group][key].own}
        if create and missing:
            await _set(admin, settings, group, missing)
        for key, value in ours.items():
            there = value if create and key in missing else found[group][key].value
            if there != value:
                drifts.append(Drift(name, key, value, there, breaks=_breaks(key, there)))
    return drifts


async def terms(admin: Admin, settings: Settings, group: str) -> Terms:
    """How ``group`` hands out.

    Raises:
        ConfigurationError: in a way that loses messages; or there are no share groups here.
    """
    found = (await read(admin, [group]))[group]
    lock, limit = int(found[LOCK].value) / 1000, int(found[LIMIT].value)
    if settings.reset == "earliest" and found[RESET].value != "earliest":
        raise ConfigurationError(
            f"Kafka: share group {group} begins with {RESET}={found[RESET].value}, so what is published before its first reader "
            f"comes is lost; declare it before it is read, or set earliest with kafka-configs.sh --group {group}"
        )
    if limit < LEAST_DELIVERIES:
        raise ConfigurationError(
            f"Kafka: {LIMIT}={limit} of share group {group}: the broker throws a message away after {limit} hand-outs, before a "
            f"crash loop is told; raise it to {LEAST_DELIVERIES} or more"
        )
    return Terms(lock, limit)


async def read(admin: Admin, groups: Iterable[str]) -> dict[str, dict[str, _Setting]]:
    """The settings of ``groups``, whether they exist or not.

    Raises:
        ConfigurationError: no share groups here.
    """
    resources = [ConfigResource(ResourceType.GROUP, group) for group in groups]
    if not resources:
        return {}
    try:
        answers: dict[Any, Mapping[str, Any]] = await admin.ask(
            "reading the settings of share groups",
            lambda client, seconds: client.describe_configs(resources, request_timeout=seconds),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"Kafka: {NO_SHARE_GROUPS} ({error})") from None
    found: dict[str, dict[str, _Setting]] = {}
    for resource, entries in answers.items():
        if any(name not in entries for name in (RESET, LOCK)):
            raise ConfigurationError(f"Kafka: {NO_SHARE_GROUPS}")
        found[resource.name] = {name: _setting(entries, name) for name in (RESET, LOCK, LIMIT, ISOLATION)}
    return found


def _setting(entries: Mapping[str, Any], name: str) -> _Setting:
    entry = entries[name]
    return _Setting(str(entry.value), not entry.is_default)


async def _set(admin: Admin, settings: Settings, group: str, values: Mapping[str, str]) -> None:
    """Set ``values``, and return when the cluster tells of them: who joins before that begins with the defaults."""
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
    await admin.ask(
        f"setting up share group {group}",
        lambda client, seconds: client.incremental_alter_configs([resource], request_timeout=seconds),
    )
    deadline = time.monotonic() + settings.request_timeout
    while True:
        found = (await read(admin, [group]))[group]
        if all(found[name].own for name in values):
            return
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka: the settings of share group {group} are not told yet; try again")
        await asyncio.sleep(0.02)


def _breaks(name: str, value: str) -> bool:
    if name == LIMIT:
        return int(value) < LEAST_DELIVERIES
    return name in (RESET, ISOLATION)

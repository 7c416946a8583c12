"""Topics and subscriptions: what each channel and source becomes, and how what exists may differ.

What a subscription looks like follows from its name and its channel's options alone, not from who declares it. That is why
every one has its net (a dead-letter policy), wanted or not: without one Pub/Sub does not count deliveries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import json_format

from atleastonce.adapters.pubsub.channel import Subscription, Topic
from atleastonce.adapters.pubsub.config import Config
from atleastonce.channels import Channel, Queue, Source
from atleastonce.channels import Topic as TopicChannel
from atleastonce.contract import Drift, Topology
from atleastonce.durations import format_duration
from atleastonce.errors import ConfigurationError

DEAD_LETTERS: Final = ".dlq"
DELETED_TOPIC: Final = "_deleted-topic_"
_OPTION: Final = "pubsub"
_WAY: Final = re.compile(r"\.(retry\.[0-9a-z.]+|redrive|suspects)$")


@dataclass
class Plan:
    """Everything that a topology needs, by short name; nets are made before what falls into them."""

    topics: dict[str, Any] = field(default_factory=dict)
    subscriptions: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)  # the full name of a resource -> the channel's or source's


def plan(wanted: Topology, config: Config) -> Plan:
    """What ``wanted`` needs.

    Raises:
        ConfigurationError: a name or an option that Pub/Sub cannot have, or one name asked for in two ways.
    """
    found = Plan()
    for queue in wanted.dead_letters:
        _add_source(found, Source(queue), config)
    rooms = [delay.channel for delay in wanted.delays]
    known = {queue.name for queue in (*wanted.dead_letters, *rooms)}
    for channel in wanted.channels:
        if isinstance(channel, TopicChannel):
            _add_topic(found, channel, config)
        elif isinstance(channel, Queue) and channel.name not in known:
            _add_source(found, Source(channel), config)
    for source in (*wanted.sources, *map(Source, rooms)):
        if source.name not in {queue.name for queue in wanted.dead_letters}:
            _add_source(found, source, config)
    return found


def net_of(name: str) -> str | None:
    """The dead-letter queue beneath the source ``name``; None for one that is a dead-letter queue itself."""
    return None if name.endswith(DEAD_LETTERS) else _WAY.sub("", name) + DEAD_LETTERS


def _add_source(found: Plan, source: Source, config: Config) -> None:
    net = net_of(source.name) if config.max_delivery_attempts else None
    if net is not None and config.subscription(net) not in found.subscriptions:
        _add_source(found, Source(Queue(net)), config)
    topic = _add_topic(found, source.channel, config)
    name = config.subscription(source.name)
    made = Subscription(
        name=name,
        topic=topic,
        ack_deadline_seconds=config.deadline,
        enable_message_ordering=isinstance(source.channel, Queue | TopicChannel) and source.channel.fifo,
    )
    kept = config.dead_letter_retention if source.name.endswith(DEAD_LETTERS) else config.retention
    made.message_retention_duration.FromSeconds(round(kept))
    made.expiration_policy.SetInParent()  # without a time to live: else it is deleted after 31 days without a reader
    if net is not None:
        made.dead_letter_policy.dead_letter_topic = config.topic(net)
        made.dead_letter_policy.max_delivery_attempts = config.max_delivery_attempts
    _apply(made, source.channel, "subscription")
    if found.subscriptions.setdefault(name, made) != made:
        raise ConfigurationError(f"subscription {source.name} is asked for with two different settings")
    found.shown[name] = source.name


def _add_topic(found: Plan, channel: Channel[Any], config: Config) -> str:
    name = config.topic(channel.name)
    made = Topic(name=name)
    _apply(made, channel, "topic")
    if found.topics.setdefault(name, made) != made:
        raise ConfigurationError(f"topic {channel.name} is asked for with two different settings")
    found.shown[name] = channel.name
    return name


def _apply(made: Any, channel: Channel[Any], kind: str) -> None:
    given = channel.options.get(_OPTION, {})
    for name in given:
        if name not in ("topic", "subscription"):
            raise ConfigurationError(
                f'{channel.name}: options["pubsub"]["{name}"]: pubsub takes "topic" and "subscription", each with the '
                "fields of that resource"
            )
    fields = given.get(kind, {})
    if not isinstance(fields, Mapping) or {"name", "topic"} & set(fields):
        raise ConfigurationError(f'{channel.name}: options["pubsub"]["{kind}"] gives fields other than name and topic')
    try:
        json_format.ParseDict(dict(fields), made)
    except json_format.ParseError as error:
        raise ConfigurationError(f'{channel.name}: options["pubsub"]["{kind}"]: {error}') from None


def compare(name: str, wanted: Any, found: Any) -> list[Drift]:
    """How subscription ``found`` differs from ``wanted``, what breaks promises first."""
    drifts: list[Drift] = []

    def differ(setting: str, one: object, other: object, *, breaks: bool = False) -> None:
        if one != other:
            drifts.append(Drift(name, setting, str(one), str(other), breaks))

    differ("topic", wanted.topic, found.topic, breaks=True)
    differ("enable_message_ordering", wanted.enable_message_ordering, found.enable_message_ordering, breaks=True)
    differ("filter", wanted.filter, found.filter, breaks=True)
    differ("detached", False, found.detached, breaks=True)
    differ("delivery", "pull", _way_out(found), breaks=True)
    policy, other = wanted.dead_letter_policy, found.dead_letter_policy
    counted = bool(policy.dead_letter_topic)
    differ("dead_letter_topic", policy.dead_letter_topic, other.dead_letter_topic, breaks=counted)
    if other.dead_letter_topic:
        differ("max_delivery_attempts", policy.max_delivery_attempts, other.max_delivery_attempts)
    differ("ack_deadline_seconds", wanted.ack_deadline_seconds, found.ack_deadline_seconds)
    differ("enable_exactly_once_delivery", wanted.enable_exactly_once_delivery, found.enable_exactly_once_delivery)
    keeps, kept = wanted.message_retention_duration.seconds, found.message_retention_duration.seconds
    if kept:
        shorter = kept < keeps and name.endswith(DEAD_LETTERS)
        differ("message_retention_duration", format_duration(keeps), format_duration(kept), breaks=shorter)
    for setting in ("expiration_policy", "retry_policy"):
        if setting == "expiration_policy" or wanted.HasField(setting) or found.HasField(setting):
            differ(setting, _text(getattr(wanted, setting)), _text(getattr(found, setting)))
    return drifts


def compare_topic(name: str, wanted: Any, found: Any) -> list[Drift]:
    """How topic ``found`` differs in what ``wanted`` sets."""
    return [
        Drift(name, field.name, _shown(value), _shown(getattr(found, field.name)))
        for field, value in wanted.ListFields()
        if field.name != "name" and value != getattr(found, field.name)
    ]


def _way_out(found: Any) -> str:
    if found.push_config.push_endpoint:
        return "push"
    if found.bigquery_config.table:
        return "bigquery"
    return "cloud storage" if found.cloud_storage_config.bucket else "pull"


def _text(policy: Any) -> str:
    return _shown(policy) or "none"


def _shown(value: Any) -> str:
    return " ".join(str(value).split())

"""Declaring and deleting: queues, SNS topics, and the subscriptions between them. Everything here blocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.faults import classify
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Code, Drift, Topology
from atleastonce.errors import ConfigurationError

_NOT_ATTRIBUTES: Final = frozenset({"name", "FifoQueue", "FifoTopic", "QueueArn", "RedrivePolicy", "Policy"})
_SIDE_BY_SIDE: Final = 4


@dataclass
class QueuePlan:
    """A queue as it is wanted.

    Attributes:
        given: the attributes that the channel's options ask for.
        keeps: whether it is a dead-letter queue.
        net: the dead-letter queue beneath it, if there is one.
        topic: the SNS topic that it gets everything of.
    """

    name: str
    fifo: bool
    given: dict[str, str] = field(default_factory=dict)
    keeps: bool = False
    net: str | None = None
    topic: str | None = None


@dataclass
class Plan:
    """What a `Topology` comes to. Dead-letter queues come first, so that the nets of the others have somewhere to lead."""

    queues: dict[str, QueuePlan] = field(default_factory=dict)
    topics: dict[str, dict[str, str]] = field(default_factory=dict)
    drifts: list[Drift] = field(default_factory=list)


def plan(topology: Topology, config: Config) -> Plan:
    """What has to exist for ``topology``.

    Raises:
        ConfigurationError: a name or option that AWS cannot have.
    """
    made = Plan()
    prefix = config.prefix
    for queue in topology.dead_letters:
        _queue(made, names.of_queue(queue, prefix), queue).keeps = True
    for channel in (*topology.channels, *(delay.channel for delay in topology.delays)):
        if isinstance(channel, Topic):
            _topic(made, channel, prefix)
        elif isinstance(channel, Queue):
            _queue(made, names.of_queue(channel, prefix), channel)
        else:
            raise ConfigurationError(f"{channel.name}: declare it as a Queue or a Topic")
    for source in topology.sources:
        wanted = _queue(made, names.queue_name(source, prefix), source.channel)
        if isinstance(source.channel, Topic):
            wanted.topic = _topic(made, source.channel, prefix)
    _nets(made, topology, config)
    return made


def _nets(made: Plan, topology: Topology, config: Config) -> None:
    """Lay the nets: a standard queue beneath a standard queue, for SQS moves nothing from FIFO to standard."""
    if not config.net:
        return
    queues = (Source(each) for each in topology.channels if isinstance(each, Queue))
    for source in (*topology.sources, *queues):
        below = names.of_queue(source.dead_letter_channel, config.prefix)
        above = made.queues[names.queue_name(source, config.prefix)]
        if below in made.queues and made.queues[below].keeps and not above.fifo and not above.keeps:
            above.net = below


def _queue(made: Plan, name: str, channel: Channel[Any]) -> QueuePlan:
    fifo = name.endswith(names.FIFO)
    found = made.queues.setdefault(name, QueuePlan(name, fifo))
    if isinstance(channel, Queue):
        found.given |= _attributes(channel)
        if channel.single_active and not channel.fifo:
            made.drifts.append(Drift(name, "single_active", "True", "unsupported; use fifo=True", breaks=True))
    return found


def _topic(made: Plan, topic: Topic[Any], prefix: str) -> str:
    name = names.topic_name(topic, prefix)
    made.topics[name] = _attributes(topic)
    return name


def _attributes(channel: Channel[Any]) -> dict[str, str]:
    given: Mapping[str, Any] = channel.options.get(names.OPTION, {})
    found: dict[str, str] = {}
    for name, value in given.items():
        if name == "name":
            continue
        if name in _NOT_ATTRIBUTES or not name[:1].isupper():
            raise ConfigurationError(
                f'{channel.name}: options["sqs"]["{name}"]: give attributes of CreateQueue or CreateTopic, such as '
                f'"KmsMasterKeyId", or "name"; not what the adapter sets itself'
            )
        if isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif isinstance(value, str | int):
            found[name] = str(value)
        else:
            found[name] = json.dumps(value)
    return found


class Maker:
    """Makes a `Plan` real, or compares; differences are collected in ``drifts``."""

    def __init__(self, config: Config, clients: Clients, directory: Directory, create: bool) -> None:
        self.drifts: list[Drift] = []
        self._config = config
        self._clients = clients
        self._directory = directory
        self._create = create

    def make(self, wanted: Plan) -> list[Drift]:
        """All of it. Raises the client's errors."""
        self.drifts += wanted.drifts
        _each(self._topic, wanted.topics.items())
        _each(self._queue, [each for each in wanted.queues.values() if each.keeps])
        _each(self._queue, [each for each in wanted.queues.values() if not each.keeps])
        return list(dict.fromkeys(self.drifts))

    def _missing(self, name: str, kind: str) -> None:
        self.drifts.append(Drift(name, "missing", kind, "", breaks=True))

    # ---------------------------------------------------------------------------------------------------------- topics

    def _topic(self, item: tuple[str, dict[str, str]]) -> None:
        name, given = item
        sns, arn = self._clients.sns, self._directory.arn("sns", name)
        try:
            found = sns.get_topic_attributes(TopicArn=arn)["Attributes"]
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
            if not self._create:
                self._missing(name, "topic")
                return
            fifo = {"FifoTopic": "true"} if name.endswith(names.FIFO) else {}
            sns.create_topic(Name=name, Attributes={**fifo, **given})
            return
        self._compare(name, given, found)

    def _subscribe(self, queue: QueuePlan, topic: str) -> None:
        sns = self._clients.sns
        arn, endpoint = self._directory.arn("sns", topic), self._directory.arn("sqs", queue.name)
        try:
            found = self._subscription(arn, endpoint)
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
            return  # the topic is missing, which was said
        if found is None:
            if not self._create:
                self._missing(f"{topic} -> {queue.name}", "subscription")
                return
            sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=endpoint, Attributes={"RawMessageDelivery": "true"})
        else:
            set_to = sns.get_subscription_attributes(SubscriptionArn=found)["Attributes"].get("RawMessageDelivery")
            if set_to != "true":
                # Wrapped in JSON, a message's attributes are no attributes: ids, keys and headers would be lost.
                self.drifts.append(Drift(queue.name, "RawMessageDelivery", "true", str(set_to), breaks=True))
        self._directory.subscribed(arn)

    def _subscription(self, arn: str, endpoint: str) -> str | None:
        pages = self._clients.sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=arn)
        for page in pages:
            for each in page.get("Subscriptions", ()):
                if each["Endpoint"] == endpoint and each["SubscriptionArn"].startswith("arn:"):
                    return str(each["SubscriptionArn"])
        return None

    # ---------------------------------------------------------------------------------------------------------- queues

    def _queue(self, wanted: QueuePlan) -> None:
        sqs = self._clients.sqs
        try:
            url = self._directory.find(wanted.name)
            found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
            if not self._create:
                self._missing(wanted.name, "queue")
                return
            found = self._make(wanted)
        if found is not None:
            self._check(wanted, found)
        if wanted.topic is not None:
            self._subscribe(wanted, wanted.topic)

    def _make(self, wanted: QueuePlan) -> dict[str, str] | None:
        """Create it; its attributes instead, where somebody else has just done so with others."""
        attributes = {"MessageRetentionPeriod": str(self._config.retention)}
        if wanted.fifo:
            attributes["FifoQueue"] = "true"
        if wanted.net is not None:
            attributes["RedrivePolicy"] = self._net(wanted.net)
        if wanted.topic is not None:
            attributes["Policy"] = json.dumps({"Version": "2012-10-17", "Statement": [self._statement(wanted)]})
        sqs = self._clients.sqs
        try:
            url = sqs.create_queue(QueueName=wanted.name, Attributes={**attributes, **wanted.given})["QueueUrl"]
        except Exception as error:
            if classify(error).code is not Code.CONFLICT:
                raise
            url = self._directory.find(wanted.name)
            found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            return found
        self._directory.learn(wanted.name, url)
        return None

    def _check(self, wanted: QueuePlan, found: Mapping[str, str]) -> None:
        """Compare, and add what is beside the queue and not in it: the way in from a topic, the net below."""
        self._compare(wanted.name, wanted.given, found)
        self._compare_defaults(wanted, found)
        add: dict[str, str] = {}
        if self._create and wanted.net is not None and not found.get("RedrivePolicy"):
            add["RedrivePolicy"] = self._net(wanted.net)  # who only looks may find no queue of dead letters to name
        if wanted.topic is not None:
            policy = json.loads(found.get("Policy") or "{}")
            statements = policy.get("Statement", [])
            statements = [statements] if isinstance(statements, dict) else statements
            if not any(self._lets_in(each, wanted.topic) for each in statements):
                policy = {"Version": "2012-10-17", **policy, "Statement": [*statements, self._statement(wanted)]}
                add["Policy"] = json.dumps(policy)
        if add and self._create:
            self._clients.sqs.set_queue_attributes(QueueUrl=self._directory.url(wanted.name), Attributes=add)
        elif "Policy" in add:
            self.drifts.append(
                Drift(
                    wanted.name, "Policy", f"sns.amazonaws.com may send, from {wanted.topic}", "it may not", breaks=True
                )
            )

    def _compare_defaults(self, wanted: QueuePlan, found: Mapping[str, str]) -> None:
        """What the code says nothing about, where the queue does less than one that we make: it loses messages sooner, hands them
        out later, or refuses those that we publish."""
        largest = self._config.topic_max_message_bytes if wanted.topic is not None else self._config.max_message_bytes
        ours = {"MessageRetentionPeriod": self._config.retention, "MaximumMessageSize": largest, "DelaySeconds": 0}
        for setting, value in ours.items():
            there = int(found.get(setting, value))
            if setting not in wanted.given and (there > value if setting == "DelaySeconds" else there < value):
                self.drifts.append(Drift(wanted.name, setting, str(value), str(there), breaks=False))

    def _compare(self, name: str, given: Mapping[str, str], found: Mapping[str, str]) -> None:
        for setting, value in given.items():
            if not _same(value, found.get(setting)):
                self.drifts.append(Drift(name, setting, value, found.get(setting, "not set"), breaks=False))

    def _net(self, below: str) -> str:
        found = self._clients.sqs.get_queue_attributes(
            QueueUrl=self._directory.url(below), AttributeNames=["QueueArn"]
        )["Attributes"]["QueueArn"]
        return json.dumps({"deadLetterTargetArn": found, "maxReceiveCount": str(self._config.net)})

    def _statement(self, queue: QueuePlan) -> dict[str, Any]:
        topic = queue.topic or ""
        return {
            "Sid": f"atleastonce-{topic.removesuffix(names.FIFO)}",
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": self._directory.arn("sqs", queue.name),
            "Condition": {"ArnEquals": {"aws:SourceArn": self._directory.arn("sns", topic)}},
        }

    def _lets_in(self, statement: Any, topic: str) -> bool:
        """Whether ``statement`` lets ``topic`` send; told by its being named in a condition, whatever its form."""
        arn = self._directory.arn("sns", topic)
        return (
            isinstance(statement, dict)
            and statement.get("Effect") == "Allow"
            and arn in json.dumps(statement.get("Condition", {}))
        )


def remove(topology: Topology, config: Config, clients: Clients, directory: Directory) -> None:
    """Delete what `Maker` makes of ``topology``; what is not there is fine. Raises the client's other errors."""
    wanted = plan(topology, config)

    def queue(each: QueuePlan) -> None:
        if each.topic is not None:
            _unsubscribe(each, clients, directory)
        _unless_gone(lambda: clients.sqs.delete_queue(QueueUrl=directory.find(each.name)))
        directory.forget(each.name)

    _each(queue, wanted.queues.values())
    published = {names.topic_name(each, config.prefix) for each in topology.channels if isinstance(each, Topic)}
    for name in published:
        arn = directory.arn("sns", name)
        _unless_gone(lambda arn=arn: clients.sns.delete_topic(TopicArn=arn))  # type: ignore[misc]
        directory.silent(arn)


def _unsubscribe(queue: QueuePlan, clients: Clients, directory: Directory) -> None:
    arn, endpoint = directory.arn("sns", queue.topic or ""), directory.arn("sqs", queue.name)

    def leave() -> None:
        for page in clients.sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=arn):
            for each in page.get("Subscriptions", ()):
                if each["Endpoint"] == endpoint and each["SubscriptionArn"].startswith("arn:"):
                    clients.sns.unsubscribe(SubscriptionArn=each["SubscriptionArn"])

    _unless_gone(leave)
    directory.silent(arn)


def _unless_gone(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        if classify(error).code is not Code.NOT_FOUND:
            raise


def _each(call: Callable[[Any], None], items: Iterable[Any]) -> None:
    """``call`` for each item, some at a time; the first error is raised when all have ended."""
    waiting = list(items)
    if len(waiting) < 2:
        for item in waiting:
            call(item)
        return
    with ThreadPoolExecutor(min(_SIDE_BY_SIDE, len(waiting)), "atleastonce-sqs-declare") as pool:
        for _ in pool.map(call, waiting):
            pass


def _same(wanted: str, found: str | None) -> bool:
    if found is None or wanted == found:
        return wanted == found
    try:
        return bool(json.loads(wanted) == json.loads(found))
    except ValueError:
        return False

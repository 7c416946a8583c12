"""Settings: what the URL and the options say, checked, and the client configurations made of them.

Names with a place in librdkafka's CONFIGURATION.md go to the client as they are. Ours are few and are listed in
`Settings`. What our guarantees rest on cannot be set.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, Producer

from atleastonce.contract import Window
from atleastonce.durations import seconds
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, is_secret

DEFAULT_PORT = 9092

RECORD_OVERHEAD = 1024
"""Bytes kept free below ``message.max.bytes`` for the record's framing."""

TOPIC_MAX_BYTES = 1_048_588
"""A topic's ``max.message.bytes`` where nobody set it (Kafka's default since 2.5)."""

COPY_ROOM = 65_536
"""What a copy of the largest message may be larger by: our headers are below 8 KiB, framing and client overhead a little."""

# Of one partition at a time, where partitions share a window (1 MiB by default). Fewer: more requests. More: longer runs of one
# partition before another one's records come, and more that a pause throws away.
_SHARED_FETCH_BYTES = 128 * 1024
_SHARED_FETCH_WAIT_MS = 20

# 10 000 by default. Fewer: more work for each record, for clients and brokers. More: one reader of a share group gets more at once.
_SHARED_BATCH = 100

# 60 s by default. Longer: after a crash in the middle of one, readers of its topics and the next owner of its partitions wait as
# long. Shorter: a broker that restarts takes longer than that, and what was handled runs again.
_TRANSACTION_MS = 10_000

# They run programs, load code or send secrets to an address: never taken from a URL, which may come from anywhere.
_DANGEROUS = frozenset(
    {"plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location", "sasl.oauthbearer.token.endpoint.url"}
)

# What the members of a share group do not have, and refuse: the broker decides these things for their group.
_NOT_SHARED = frozenset(
    {
        "auto.offset.reset",
        "fetch.error.backoff.ms",
        "fetch.queue.backoff.ms",
        "group.instance.id",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "isolation.level",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "session.timeout.ms",
        "topic.blacklist",
    }
)

# What the delivery guarantee rests on, or what the adapter listens to.
_OURS: Mapping[str, str] = {
    "acks": "every publish waits for all in-sync replicas",
    "request.required.acks": "every publish waits for all in-sync replicas",
    "enable.idempotence": "without it the client's own retries duplicate and reorder",
    "transactional.id": "it follows from the source, and from group.instance.id",
    "delivery.report.only.error": "every publish is confirmed",
    "enable.auto.commit": "offsets are committed when the work is done",
    "enable.auto.offset.store": "offsets are committed when the work is done",
    "enable.partition.eof": "the adapter reads without end",
    "allow.auto.create.topics": "topics are made by declare()",
    "group.id": "it follows from the source: the topic's group, or the queue's name",
    "bootstrap.servers": "the URL's hosts",
    "metadata.broker.list": "the URL's hosts",
    "partition.assignment.strategy": "",
    "share.acknowledgement.mode": "what is done is acknowledged record by record",
    "max.poll.records": "it follows from max_in_flight",
}
_CALLBACKS = frozenset({"error_cb", "on_commit", "on_delivery", "dr_cb", "throttle_cb", "stats_cb", "logger"})
_STRATEGIES = ("cooperative-sticky", "range", "roundrobin")


class ClientLog:
    """Takes what librdkafka logs (a line for every refused connection) down to the debug level of ``atleastonce.kafka``:
    what matters of it reaches people through conditions and faults."""

    def __init__(self) -> None:
        self._log = logging.getLogger("atleastonce.kafka")

    def log(self, level: int, text: str, *args: object) -> None:
        self._log.debug(text, *args)


CLIENT_LOG = ClientLog()


@dataclass(frozen=True)
class Settings:
    """What one adapter was asked for.

    Attributes:
        servers: ``host:port,host:port``.
        client: librdkafka's own settings, for all handles.
        partitions: of a topic that is created and says nothing else. Too few bound how many workers share it; too many
            cost memory on the broker and in each client.
        replication: replication factor of created topics; -1 for the broker's default.
        commit_interval: seconds between commits. Longer: more is repeated after a crash; shorter: more load on the
            group's coordinator.
        commit_every: completions after which a commit does not wait for the interval.
        drain: seconds that running work may take when partitions are taken away. Too short: it is repeated elsewhere;
            too long: in a classic group every member waits for the slowest.
        request_timeout: seconds for one question to the broker (existence, lag, creation).
        protocol: ``"consumer"`` (KIP-848, brokers from 4.0) or ``"classic"``.
        strategy: assignment strategy of classic groups.
        reset: where a group without a commit starts: ``"earliest"`` or ``"latest"``.
        share: whether queues and groups are read by share groups (KIP-932, brokers from 4.2), and not by consumer groups.
        share_lock: seconds for which a share group leaves a record with who got it, where nobody has set that for the group.
            Too short: what a slow handler still works on is handed out again. Too long: what a process that hangs held comes
            later.
        share_members: with how many members a subscription joins a share group. Each works off what it got before it gets more:
            too few, and a few slow messages hold up all others; too many cost threads and connections.
    """

    servers: str
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    partitions: int = 6
    replication: int = -1
    commit_interval: float = 1.0
    commit_every: int = 10_000
    drain: float = 10.0
    request_timeout: float = 10.0
    protocol: str = "classic"
    strategy: str = "cooperative-sticky"
    reset: str = "earliest"
    share: bool = False
    share_lock: float = 30.0
    share_members: int = 4

    @property
    def incremental(self) -> bool:
        """Whether assignments come as differences (cooperative, KIP-848), not as wholes (eager)."""
        return self.protocol == "consumer" or self.strategy == "cooperative-sticky"

    @property
    def max_message_bytes(self) -> int:
        """Body, key and headers of the largest message that an ordinary topic takes."""
        return self._topic_limit - RECORD_OVERHEAD

    @property
    def max_sent_bytes(self) -> int:
        """Body, key and headers of the largest message that is sent at all: a copy of the largest one has room for our fields."""
        return self.copy_limit - RECORD_OVERHEAD

    @property
    def copy_limit(self) -> int:
        """``max.message.bytes`` of the topics that keep copies."""
        return self._topic_limit + COPY_ROOM

    @property
    def _topic_limit(self) -> int:
        return int(self.client.get("message.max.bytes", TOPIC_MAX_BYTES))

    @property
    def max_poll_interval(self) -> float:
        """Seconds after which a group expels a member that does not poll."""
        return int(self.client.get("max.poll.interval.ms", 300_000)) / 1000

    @property
    def delivery_timeout(self) -> float:
        """Seconds after which an unconfirmed publish ends as unknown."""
        return int(self.producer()["delivery.timeout.ms"]) / 1000

    def common(self) -> dict[str, Any]:
        """For every handle."""
        return {
            "client.id": "atleastonce",
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2000,  # 10 s by default: a restarted broker would be found late
            **self.client,
            "bootstrap.servers": self.servers,
        }

    def producer(self) -> dict[str, Any]:
        """For the publishing handle."""
        timeout = self.client.get("message.timeout.ms", 30_000)
        # A share group hands out whole record batches: what one reader gets of a larger one, it may not manage in time.
        small = {"batch.num.messages": _SHARED_BATCH} if self.share else {}
        return {
            **small,
            "linger.ms": 5,  # the client's own default: what is handed over does not wait for it, see `Pump`
            "partitioner": "murmur2_random",  # as the Java client: one key, one partition, whoever publishes
            "delivery.timeout.ms": timeout,
            "topic.metadata.propagation.max.ms": 10_000,
            **{k: v for k, v in self.common().items() if k != "message.timeout.ms"},
            "message.max.bytes": self.copy_limit,
            "enable.idempotence": True,
            "acks": "all",
        }

    @property
    def lingers(self) -> bool:
        """Whether the user says how long the client collects records before it sends them."""
        return not self.client.keys().isdisjoint(("linger.ms", "queue.buffering.max.ms"))

    @property
    def transaction_timeout(self) -> float:
        """Seconds after which the broker aborts a transaction whose producer has fallen silent."""
        return int(self.client.get("transaction.timeout.ms", _TRANSACTION_MS)) / 1000

    def transactional(self, identity: str) -> dict[str, Any]:
        """For the handle of one subscription's transactions."""
        config, limit = self.producer(), int(self.transaction_timeout * 1000)
        # The client takes no record that might outlive its transaction. That a record was sent, the commit says. And it keeps the
        # brokers that it knows: when it forgets all (its way of finding new ones), it still waits for the old handle of the group's
        # coordinator. A producer that finds none of them is replaced here.
        return {
            "metadata.recovery.strategy": "none",
            **config,
            "delivery.timeout.ms": min(int(config["delivery.timeout.ms"]), limit),
            "delivery.report.only.error": True,
            "transactional.id": identity,
            "transaction.timeout.ms": limit,
        }

    @property
    def reads_uncommitted(self) -> bool:
        """Whether records of open and aborted transactions are read, too."""
        return str(self.client.get("isolation.level", "")) == "read_uncommitted"

    def consumer(self, group: str, window: Window) -> dict[str, Any]:
        """For one subscription's handle. The client's own prefetch is kept small: it is memory beyond the window, and
        what a pause throws away and fetches again."""
        kilobytes = min(max(window.bytes // 1024, 8 * 1024), 16 * 1024)
        config = {
            "queued.min.messages": min(max(2 * window.messages, 100), 100_000),
            "queued.max.messages.kbytes": kilobytes,
            # A fetch that waits at a log's end holds up the one that a resume needs, since there is one at a time: 500 ms
            # by default. Lower: more idle requests.
            "fetch.wait.max.ms": 100,
            # How long a deleted topic goes unnoticed (30 s by default). News of it is checked before it is believed.
            "topic.metadata.propagation.max.ms": 3000,
            # How long a request may go unanswered (60 s by default): one that a network has swallowed is what a group's member then
            # waits for. Shorter: a coordinator that is slow looks like one that is gone. Joining a group has its own, longer.
            "socket.timeout.ms": max(10_000, int(self.client.get("fetch.wait.max.ms", 0)) + 2000),
            "fetch.queue.backoff.ms": 5,  # 1 s by default: with a small queue the fetcher would sleep most of the time
            **self.common(),
            "group.id": group,
            "group.protocol": self.protocol,
            "auto.offset.reset": "earliest",  # `reset` is applied by the adapter; out of range must not skip anything
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # A transaction ends with a mark that has an offset and is no record: only the end of the partition tells of it.
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
        }
        if window.shared:
            # Its partitions are paused alone, again and again, which throws away what was fetched; and the fetch of one that
            # goes on waits for the one that waits at the others' ends.
            config = {"fetch.message.max.bytes": _SHARED_FETCH_BYTES, **config}
            config["fetch.wait.max.ms"] = self.client.get("fetch.wait.max.ms", _SHARED_FETCH_WAIT_MS)
        if self.protocol == "classic":
            config["partition.assignment.strategy"] = self.strategy
        return config

    def sharer(self, group: str, most: int) -> dict[str, Any]:
        """For one member of a share group, which takes about ``most`` records at a time: as many as the record batches hold that
        it takes them from."""
        common = {name: value for name, value in self.common().items() if name not in _NOT_SHARED}
        return {
            # A member asks again when its question was answered, with or without records.
            "fetch.wait.max.ms": 100,
            "topic.metadata.propagation.max.ms": 3000,
            **common,
            "group.id": group,
            "max.poll.records": most,
            "share.acknowledgement.mode": "explicit",
        }


def settings(url: BrokerUrl, options: Mapping[str, Any]) -> Settings:
    """Settings of ``url``'s query with ``options`` over it.

    Raises:
        ConfigurationError: an option that is unknown, dangerous in a URL, ours to set, or has a bad value.
    """
    if url.path:
        raise ConfigurationError(f'broker URL "{url}": Kafka has no path; name topics in the service, not in the URL')
    for name in url.query:
        if name in _DANGEROUS:
            raise ConfigurationError(
                f"{name} is not taken from a URL: it runs code or sends secrets; give it in options="
            )
    given: dict[str, Any] = {**url.query, **options}
    for name in given:
        if _OURS.get(name):
            raise ConfigurationError(f"{name} cannot be set: {_OURS[name]}")
        if name in _CALLBACKS:
            raise ConfigurationError(f"{name} cannot be set: the adapter listens to it itself")
    if url.user is not None:
        # A password never goes out unencrypted unless somebody writes that it may.
        given = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": url.user,
            "sasl.password": url.password or "",
            **given,
        }
        if "sasl.mechanisms" in given:  # librdkafka's other spelling
            del given["sasl.mechanism"]
    share = _choice(given, "share.groups", "false", ("true", "false")) == "true"
    result = Settings(
        servers=",".join(url.host_ports(DEFAULT_PORT)),
        # A share group hands a partition's records to any number of members, as long as it has more of them than partitions.
        partitions=_integer(given, "partitions", 1 if share else 6, 1, 10_000),
        replication=_integer(given, "replication.factor", -1, -1, 100),
        commit_interval=seconds(given.pop("commit.interval", 1.0), name="commit.interval", minimum=0.01),
        commit_every=_integer(given, "commit.every", 10_000, 1, 10**9),
        drain=seconds(given.pop("drain", 10.0), name="drain"),
        request_timeout=seconds(given.pop("request.timeout", 10.0), name="request.timeout", minimum=0.1),
        protocol=_choice(given, "group.protocol", "classic", ("classic", "consumer")),
        strategy=_choice(given, "partition.assignment.strategy", "cooperative-sticky", _STRATEGIES),
        reset=_choice(given, "auto.offset.reset", "earliest", ("earliest", "latest")),
        share=share,
        share_lock=seconds(given.pop("share.lock", 30.0), name="share.lock", minimum=1.0),
        share_members=_integer(given, "share.members", 4, 1, 100),
        client=given,
    )
    _check(result)
    return result


def _integer(given: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    text = given.pop(name, default)
    try:
        value = int(text)
    except (TypeError, ValueError):
        value = low - 1
    if not low <= value <= high:
        raise ConfigurationError(f"{name}={text!r} is out of range {low} to {high}")
    return value


def _choice(given: dict[str, Any], name: str, default: str, known: tuple[str, ...]) -> str:
    value = str(given.pop(name, default)).lower()
    if value not in known:
        raise ConfigurationError(f"{name}={value!r} is unknown; use {' or '.join(known)}")
    return value


def share_consumer() -> Any:
    """The client's class for members of share groups.

    Raises:
        ConfigurationError: this version of the client has none.
    """
    try:
        from confluent_kafka import ShareConsumer
    except ImportError:
        raise ConfigurationError(
            f"share.groups=true needs confluent-kafka 2.16 or newer; this is {confluent_kafka.__version__}"
        ) from None
    return ShareConsumer


def _check(made: Settings) -> None:
    """Let librdkafka read every setting, on handles that know no server and therefore connect to none."""
    handles: list[tuple[Any, dict[str, Any]]] = [
        (Producer, made.producer()),
        (Producer, made.transactional("check")),
        (Consumer, made.consumer("check", Window(100, 1 << 20))),
    ]
    if made.share:
        handles.append((share_consumer(), made.sharer("check", 100)))
    for kind, config in handles:
        del config["bootstrap.servers"]
        try:
            kind(config, logger=CLIENT_LOG).close()
        except KafkaException as error:
            reason = str(error.args[0].str())
        except (TypeError, ValueError) as error:
            reason = str(error)
        else:
            continue
        for name, value in made.client.items():
            if is_secret(name) and value:
                reason = reason.replace(str(value), "***")
        raise ConfigurationError(f"Kafka client: {reason}")

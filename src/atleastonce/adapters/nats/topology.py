"""Streams and durables: made where they are missing, compared where they are there, never changed."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from atleastonce.adapters.nats import faults
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import (
    durable_of,
    group_subject,
    own,
    stream_of,
    subject_of,
    subjects_of,
)
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Drift, Topology
from atleastonce.errors import ConfigurationError, NotFound

_NANOS: Final = 1_000_000_000
_FEW: Final = 1000
"""``max_ack_pending`` as JetStream itself makes it; somebody who has set less has meant to."""
_NOT_OF_THE_STREAM: Final = frozenset({"stream", "subject", "durable", "consumer", "core"})


class Reader(msgspec.Struct, frozen=True):
    """A durable as it is on the broker.

    Attributes:
        stream, durable: its names.
        config: its settings.
        created: when; another time is another consumer.
        ack_wait: the lease, in seconds.
    """

    stream: str
    durable: str
    config: dict[str, Any]
    created: str
    ack_wait: float


def stream_config(channel: Channel[Any], config: Config) -> dict[str, Any]:
    """How the stream of ``channel`` is made.

    A queue's is a work queue: acknowledged is removed, and a full one refuses instead of dropping what waits. A topic's keeps
    what it has for ``topic_max_age``: groups that come later find it, and one that is away loses nothing within that time.
    Interest retention would drop what is published before the first group is there.
    """
    topic = isinstance(channel, Topic)
    made = {
        "name": stream_of(channel),
        "subjects": subjects_of(channel),
        "retention": "limits" if topic else "workqueue",
        "discard": "old" if topic else "new",
        "storage": "file",
        "no_ack": False,
        "allow_direct": not topic,  # for looking through dead letters
        "num_replicas": config.replicas,
        "max_age": int(config.topic_max_age * _NANOS) if topic else 0,
        "duplicate_window": int(config.duplicate_window * _NANOS),
    }
    if topic and 0 < config.topic_max_age < config.duplicate_window:
        made["duplicate_window"] = made["max_age"]
    return made | {name: value for name, value in own(channel).items() if name not in _NOT_OF_THE_STREAM}


def consumer_config(source: Source, config: Config) -> dict[str, Any]:
    """How the durable of ``source`` is made.

    ``max_ack_pending`` is unlimited: what waits for a delayed retry counts in it, and must hold up no other message; the window of
    each reader is kept by what it asks for. With ``single_active`` it is one: JetStream hands out what comes again, after a crash
    say, behind what is out already, so that only one message at a time keeps an order.

    ``max_deliver`` is unlimited: JetStream's end of it is silence, not a dead letter.
    """
    subjects = [subject_of(source.channel)]
    if source.group is not None:
        subjects.append(group_subject(source))
    made: dict[str, Any] = {
        "durable_name": durable_of(source),
        "ack_policy": "explicit",
        "ack_wait": int(config.ack_wait * _NANOS),
        "deliver_policy": "all",
        "max_deliver": -1,
        "max_ack_pending": 1 if isinstance(source.channel, Queue | Topic) and source.channel.single_active else -1,
        "replay_policy": "instant",
    }
    if len(subjects) == 1:
        made["filter_subject"] = subjects[0]
    else:
        made["filter_subjects"] = subjects
    return made | dict(own(source.channel).get("consumer", {}))


class Maker:
    """One run of `Adapter.declare`."""

    def __init__(self, link: Link, create: bool, wanted: Topology) -> None:
        self.drifts: list[Drift] = []
        self._read = {subject_of(source.channel) for source in wanted.sources if source.group is not None}
        self._looked_through = {subject_of(queue) for queue in wanted.dead_letters}
        self._link = link
        self._create = create
        self._streams: dict[str, str | None] = {}

    async def stream(self, channel: Channel[Any]) -> None:
        """Make or compare the stream of ``channel``."""
        wanted = stream_config(channel, self._link.config)
        name, subject = wanted["name"], subject_of(channel)
        found = await _maybe(self._link, f"STREAM.INFO.{name}")
        if found is None and self._create:
            try:
                found = await self._link.ask(f"STREAM.CREATE.{name}", wanted)
            except faults.ApiFailure as failure:
                if failure.error.number not in (faults.STREAM_DIFFERS, faults.SUBJECT_TAKEN):
                    raise
                found = await _maybe(self._link, f"STREAM.INFO.{name}")  # somebody else was faster
        if found is None:  # a stream of another name may take the subject
            other = await find_stream(self._link, subject)
            found = None if other is None else await _maybe(self._link, f"STREAM.INFO.{other}")
        self._streams[subject] = None if found is None else str(found["config"]["name"])
        if found is None:
            self.drifts.append(Drift(channel.name, "missing", f"stream {name}", "nothing", breaks=not self._create))
        else:
            read, looked_through = subject in self._read, subject in self._looked_through
            self.drifts += _stream_drifts(channel, wanted, found["config"], read, looked_through)

    async def durable(self, source: Source) -> None:
        """Make or compare the consumer of ``source``."""
        wanted = consumer_config(source, self._link.config)
        name = wanted["durable_name"]
        stream = self._streams.get(subject_of(source.channel))
        if stream is None:
            self.drifts.append(Drift(source.name, "missing", f"consumer {name}", "nothing", breaks=not self._create))
            return
        found = await _maybe(self._link, f"CONSUMER.INFO.{stream}.{name}")
        if found is None and self._create:
            question = {"stream_name": stream, "config": wanted, "action": "create"}
            try:
                found = await self._link.ask(f"CONSUMER.CREATE.{stream}.{name}", question)
            except faults.ApiFailure as failure:
                if failure.error.number in faults.WORK_QUEUE_TAKEN:
                    self.drifts.append(Drift(source.name, "consumer", name, f"another one reads {stream}", breaks=True))
                    return
                if failure.error.number != faults.CONSUMER_DIFFERS:
                    raise
                found = await _maybe(self._link, f"CONSUMER.INFO.{stream}.{name}")
        if found is None:
            self.drifts.append(Drift(source.name, "missing", f"consumer {name}", "nothing", breaks=not self._create))
        else:
            self.drifts += _consumer_drifts(source, wanted, found["config"])


def _stream_drifts(
    channel: Channel[Any], wanted: dict[str, Any], found: dict[str, Any], read: bool, looked_through: bool = False
) -> list[Drift]:
    """``read``: whether a group of it is among the sources. ``looked_through``: whether it holds dead letters."""
    drifts = []
    # Without it a look takes longer, and nothing else; of several copies it would be used nowhere.
    needs_direct = looked_through and int(found.get("num_replicas") or 1) == 1
    for setting, value in wanted.items():
        there = found.get(setting)
        if setting == "allow_direct" and not needs_direct and setting not in own(channel):
            continue
        if setting == "subjects":
            missing = [subject for subject in value if not any(_covers(each, subject) for each in there or ())]
            if missing:
                # Without the channel's own subject nothing gets in; without the groups' a redrive to one group is refused,
                # and a retry that is longer than the stream keeps it cannot come back. Who only publishes does not care.
                breaks = read or subject_of(channel) in missing
                drifts.append(Drift(channel.name, setting, str(value), str(there), breaks=breaks))
        elif _plain(there) != _plain(value):
            # A stream with no_ack confirms nothing: every publish ends unknown.
            breaks = setting == "no_ack" and bool(there)
            drifts.append(Drift(channel.name, setting, _shown(setting, value), _shown(setting, there), breaks=breaks))
    return drifts


def _consumer_drifts(source: Source, wanted: dict[str, Any], found: dict[str, Any]) -> list[Drift]:
    drifts = []

    def drift(setting: str, value: Any, there: Any, *, breaks: bool) -> None:
        drifts.append(Drift(source.name, setting, _shown(setting, value), _shown(setting, there), breaks=breaks))

    if found.get("deliver_subject"):
        drift("deliver_subject", "none (a pull consumer)", found["deliver_subject"], breaks=True)
    for setting, value in wanted.items():
        there = found.get(setting)
        if setting in ("filter_subject", "filter_subjects"):
            continue
        if setting == "ack_wait" and int(there or 0) != value:
            drift(setting, value, there, breaks=int(there or 0) < value)  # leases would end under their handlers
        elif setting == "max_deliver" and (there or -1) != value:
            drift(setting, value, there, breaks=int(there or -1) > 0)  # what fails more often is never seen again
        elif setting == "ack_policy" and there != value:
            drift(setting, value, there, breaks=True)
        elif setting == "max_ack_pending" and (there or -1) != value:
            # It counts what waits for a delayed retry: that many failing messages stop all others. More than one breaks order.
            drift(setting, value, there, breaks=value > 0 or 0 < int(there or -1) < _FEW)
        elif _plain(there) != _plain(value) and setting not in ("ack_wait", "max_deliver", "durable_name"):
            drift(setting, value, there, breaks=False)
    reads = found.get("filter_subjects") or ([found["filter_subject"]] if found.get("filter_subject") else [">"])
    needs = wanted.get("filter_subjects") or [wanted["filter_subject"]]
    if not all(any(_covers(one, each) for one in reads) for each in needs):
        # What goes to the one that is missing would be confirmed and never read: a redriven letter, for one.
        drift("filter_subjects", needs, reads, breaks=True)
    return drifts


def _plain(value: Any) -> Any:
    """The server leaves out what is nothing."""
    return None if value in (0, "", False, [], {}) else value


def _shown(setting: str, value: Any) -> str:
    if setting in ("ack_wait", "max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / _NANOS:g}s"
    return "none" if value is None else str(value)


def _covers(pattern: str, subject: str) -> bool:
    """Whether everything that ``subject`` (which may have wildcards) stands for is covered by ``pattern``."""
    ours, theirs = subject.split("."), pattern.split(".")
    for number, part in enumerate(theirs):
        if part == ">":
            return len(ours) > number
        if number >= len(ours) or (part not in ("*", ours[number])) or (part == "*" and ours[number] == ">"):
            return False
    return len(ours) == len(theirs)


async def _maybe(link: Link, subject: str) -> dict[str, Any] | None:
    try:
        return await link.ask(subject)
    except faults.ApiFailure as failure:
        if failure.error.code == 404:
            return None
        raise


async def find_stream(link: Link, subject: str) -> str | None:
    """The stream that takes ``subject``; None where none does."""
    found = await link.ask("STREAM.NAMES", {"subject": subject})
    names: list[str] = found.get("streams") or []
    return names[0] if names else None


async def stream_for(link: Link, channel: Channel[Any]) -> str:
    """The stream of ``channel``, whoever made it.

    Raises:
        NotFound: none takes its subject.
    """
    if name := own(channel).get("stream"):
        return str(name)
    found = await find_stream(link, subject_of(channel))
    if found is None:
        raise NotFound(f'{channel.name}: no stream takes "{subject_of(channel)}"; declare it first')
    return found


async def read_durable(link: Link, source: Source) -> Reader:
    """The consumer of ``source``.

    Raises:
        NotFound: no such stream or consumer.
        ConfigurationError: it cannot be read from as every promise of ours needs it.
    """
    stream, name = await stream_for(link, source.channel), durable_of(source)
    found = await link.ask(f"CONSUMER.INFO.{stream}.{name}")
    config = found["config"]
    if config.get("deliver_subject"):
        raise ConfigurationError(f"{source.name}: consumer {name} of stream {stream} is a push consumer; delete it")
    if config.get("ack_policy") != "explicit":
        raise ConfigurationError(
            f"{source.name}: consumer {name} of stream {stream} has ack_policy {config.get('ack_policy')}, not explicit"
        )
    return Reader(stream, name, config, str(found.get("created")), int(config.get("ack_wait") or 30 * _NANOS) / _NANOS)

"""Names: streams and durables take no dots, subjects take them. Both ways are reversible."""

from __future__ import annotations

from typing import Any

from atleastonce.channels import Channel, Source, Topic
from atleastonce.errors import ConfigurationError

SCHEME = "nats"

_NAMES = frozenset({"stream", "subject", "durable"})


def flat(name: str) -> str:
    """``name`` without dots, for a stream or durable: ``orders~created``. No name of ours holds ``~``, so it reads back.
    JetStream takes 255 characters, which is more than a name of ours has.
    """
    return name.replace(".", "~")


def own(channel: Channel[Any]) -> dict[str, Any]:
    """What a channel's ``options={"nats": {...}}`` say.

    Raises:
        ConfigurationError: names of one stream, for a channel that is made of several.
    """
    found = dict(channel.options.get(SCHEME, {}))
    if channel.whole and (named := _NAMES & found.keys()):
        raise ConfigurationError(
            f'{channel.whole}: options["nats"]["{min(named)}"] is of one stream, and its parts have one each; '
            "leave it or partitions away"
        )
    return found


def is_core(channel: Channel[Any]) -> bool:
    """Whether what goes there takes the way of core NATS, past all streams: requests do, as clients of any kind expect, unless
    ``options={"nats": {"core": False}}`` says that they are to be kept."""
    return channel.requests and bool(own(channel).get("core", True))


def subject_of(channel: Channel[Any]) -> str:
    """What a channel's messages are published to: its name, or ``options={"nats": {"subject": ...}}``."""
    subject = channel.options[SCHEME].get("subject") if SCHEME in channel.options else None
    if subject:
        return str(subject)
    name = channel.name
    # A subject has no empty tokens; a name may.
    return flat(name) if ".." in name or name.endswith(".") else name


def group_subject(source: Source) -> str:
    """What one group alone gets. No channel's name begins with ``_``, so it is nobody else's."""
    return f"_alo.{flat(source.channel.name)}.{flat(source.group_name)}"


def subject_for(destination: Channel[Any] | Source) -> str:
    """What a message for ``destination`` is published to."""
    if isinstance(destination, Source):
        return subject_of(destination.channel) if destination.group is None else group_subject(destination)
    return subject_of(destination)


def subjects_of(channel: Channel[Any]) -> list[str]:
    """What its stream keeps."""
    if isinstance(channel, Topic):
        return [subject_of(channel), f"_alo.{flat(channel.name)}.*"]
    return [subject_of(channel)]


def stream_of(channel: Channel[Any]) -> str:
    """How its stream is called where we make it, or where ``options={"nats": {"stream": ...}}`` says so."""
    return str(own(channel).get("stream") or flat(channel.name))


def durable_of(source: Source) -> str:
    """How a source's consumer is called; ``options={"nats": {"durable": ...}}`` names that of a queue."""
    if source.group is None and (durable := own(source.channel).get("durable")):
        return str(durable)
    return flat(source.group_name)

"""Our names as SQS and SNS spell them, and back.

SQS allows letters, digits, ``-`` and ``_``, SNS the same, and both want ``.fifo`` at the end of what is FIFO. So a dot
becomes ``--``: ``orders.created`` read by ``billing`` is queue ``orders--created--billing``. Names without dots, which is
all that exists on AWS, stay as they are. So that no two names meet in one queue, ``--`` itself, and a dash beside a dot,
are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.errors import ConfigurationError

FIFO: Final = ".fifo"
OPTION: Final = "sqs"
"""The key of a channel's own options."""

_LONGEST: Final = {"queue": 80, "topic": 256}
_AMBIGUOUS: Final = re.compile(r"--|-\.|\.-")
_LITERAL: Final = re.compile(r"[A-Za-z0-9_-]+")


def queue_name(source: Source, prefix: str) -> str:
    """The queue that ``source`` reads.

    Raises:
        ConfigurationError: SQS cannot have that name.
    """
    channel = source.channel
    fifo = bool(getattr(channel, "fifo", False))
    if source.group is None and (literal := _literal(channel, fifo)) is not None:
        return literal
    return _spelled(source.name, "queue", fifo, prefix)


def topic_name(topic: Topic[Any], prefix: str) -> str:
    """The SNS topic of ``topic``. Raises as `queue_name`."""
    literal = _literal(topic, topic.fifo)
    return literal if literal is not None else _spelled(topic.name, "topic", topic.fifo, prefix)


def of_queue(queue: Queue[Any], prefix: str) -> str:
    """The queue that holds ``queue``. Raises as `queue_name`."""
    return queue_name(Source(queue), prefix)


@lru_cache(4096)
def _spelled(name: str, kind: str, fifo: bool, prefix: str) -> str:
    if name.endswith(FIFO):
        stem = name.removesuffix(FIFO)
        raise ConfigurationError(
            f'{name}: write Queue("{stem}", fifo=True) or Topic("{stem}", fifo=True); the ".fifo" is added for SQS'
        )
    if match := _AMBIGUOUS.search(name):
        raise ConfigurationError(
            f'{name}: "{match[0]}" cannot be kept apart on SQS, where "." is spelled "--"; use another name, or name the '
            f'{kind} itself: options={{"sqs": {{"name": "..."}}}}'
        )
    spelled = prefix + name.replace(".", "--") + (FIFO if fifo else "")
    if len(spelled) > _LONGEST[kind]:
        raise ConfigurationError(
            f'{name}: "{spelled}" has {len(spelled)} characters; {"an SQS" if kind == "queue" else "an SNS"} {kind} has at '
            f"most {_LONGEST[kind]}; shorten the channel's name or the group's"
        )
    return spelled


def original(spelled: str, prefix: str) -> str:
    """Our name of what is called ``spelled``: the way back from `queue_name`."""
    return spelled.removeprefix(prefix).removesuffix(FIFO).replace("--", ".")


def _literal(channel: Channel[Any], fifo: bool) -> str | None:
    """The name that the channel's options give, as it is: for what exists already."""
    name = channel.options.get(OPTION, {}).get("name")
    if name is None:
        return None
    if not isinstance(name, str) or not _LITERAL.fullmatch(name.removesuffix(FIFO)) or len(name) > 256:
        raise ConfigurationError(
            f'{channel.name}: options["sqs"]["name"]={name!r} is no name on AWS: letters, digits, "-" and "_"'
        )
    if name.endswith(FIFO) is not fifo:
        raise ConfigurationError(
            f'{channel.name}: options["sqs"]["name"]={name!r} and fifo={fifo} contradict each other: what is FIFO ends with ".fifo"'
        )
    return name

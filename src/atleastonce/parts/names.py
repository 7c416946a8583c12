"""Which parts a channel has, what they are called, and in which of them a key is."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar
from zlib import crc32

from atleastonce.channels import Channel, Queue, Source, Topic

C = TypeVar("C", bound="Channel[Any] | Source")


def is_parted(what: object) -> bool:
    """Whether a channel, or the channel of a source, is made of several."""
    channel = what.channel if isinstance(what, Source) else what
    return (
        isinstance(channel, Queue | Topic)
        and channel.single_active
        and channel.partitions is not None
        and channel.partitions > 1
        and not channel.requests
    )


def part_number(key: bytes, partitions: int) -> int:
    """In which part a key is: CRC-32 (the one of zlib, gzip and PNG) of its bytes, unsigned, modulo ``partitions``. It will not
    change, and other programs may rely on it: it is what librdkafka calls its ``consistent`` partitioner."""
    return crc32(key) % partitions


def part_at(what: C, number: int) -> C:
    """Part ``number`` of ``what``."""
    if isinstance(what, Source):
        return Source(part_at(what.channel, number), what.group)  # type: ignore[return-value]
    return replace(what, name=f"{what.name}.p{number}", partitions=None, whole=what.name)


@lru_cache(maxsize=1024)
def _parts(what: Any) -> tuple[Any, ...]:
    channel = what.channel if isinstance(what, Source) else what
    return tuple(part_at(what, number) for number in range(channel.partitions or 1))


def parts_of(what: C) -> tuple[C, ...]:
    """The parts of a channel or source that `is_parted`, in their order."""
    return _parts(what)


def pieces(what: C) -> tuple[C, ...]:
    """Its parts, or itself if it has none."""
    return parts_of(what) if is_parted(what) else (what,)

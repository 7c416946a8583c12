"""What streams and consumers are set to, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from atleastonce.adapters.nats.faults import ApiFailure
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import durable_of
from atleastonce.adapters.nats.topology import stream_for
from atleastonce.channels import Channel, Source
from atleastonce.contract import Fact, Trait
from atleastonce.errors import NotFound, PermissionDenied

_NANOS: Final = 1_000_000_000


async def inspect(link: Link, channels: Iterable[Channel[Any]], sources: Iterable[Source]) -> list[Fact]:
    """See `Inspects.inspect`. Raises the link's errors."""
    facts: list[Fact] = []
    for channel in channels:
        found = await _info(link, channel, "STREAM.INFO.{stream}")
        if found is not None:
            facts += stream_facts(channel.name, found)
    for source in sources:
        found = await _info(link, source.channel, f"CONSUMER.INFO.{{stream}}.{durable_of(source)}")
        if found is not None:
            facts += consumer_facts(source.name, found.get("config") or {})
    return facts


async def _info(link: Link, channel: Channel[Any], question: str) -> dict[str, Any] | None:
    try:
        return await link.ask(question.format(stream=await stream_for(link, channel)))
    except (NotFound, PermissionDenied):
        return None
    except ApiFailure as failure:
        if failure.error.code == 404:
            return None
        raise


def stream_facts(name: str, found: Mapping[str, Any]) -> Iterator[Fact]:
    """What the answer to ``STREAM.INFO`` says."""
    config: Mapping[str, Any] = found.get("config") or {}
    if age := config.get("max_age"):
        yield Fact(name, Trait.RETENTION, "max_age", f"{age / _NANOS:g}s", age / _NANOS)
    if (size := config.get("max_msg_size", -1)) > 0:
        yield Fact(name, Trait.MAX_BYTES, "max_msg_size", str(size), size)
    if config.get("discard", "old") == "old":
        for limit in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
            if (most := config.get(limit, -1)) > 0:
                yield Fact(name, Trait.DROPS, limit, str(most), most)
    if config.get("storage") == "memory":
        yield Fact(name, Trait.VOLATILE, "storage", "memory")
    elif (config.get("num_replicas") or 1) == 1:
        # A server on its own tells of no cluster. How many servers a cluster has is not told to an account.
        trait = Trait.ONE_COPY if (found.get("cluster") or {}).get("name") else Trait.ONE_NODE
        yield Fact(name, trait, "num_replicas", "1")


def consumer_facts(name: str, config: Mapping[str, Any]) -> Iterator[Fact]:
    """What the configuration of a consumer says."""
    if (most := config.get("max_deliver") or -1) > 0:
        yield Fact(name, Trait.NET, "max_deliver", str(most), most)
    if (out := config.get("max_ack_pending") or -1) > 0:
        yield Fact(name, Trait.HOLDS, "max_ack_pending", str(out), out)
    if idle := config.get("inactive_threshold"):
        yield Fact(name, Trait.VANISHES, "inactive_threshold", f"{idle / _NANOS:g}s", idle / _NANOS)

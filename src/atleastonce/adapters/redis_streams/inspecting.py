"""What the server keeps through a restart, and through a shortage of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from atleastonce.adapters.redis_streams.faults import ReplyError
from atleastonce.adapters.redis_streams.link import Link
from atleastonce.contract import Fact, Trait

_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")


async def inspect(link: Link, address: str) -> list[Fact]:
    """See `Inspects.inspect`: one question. A server that does not let us read its configuration tells nothing."""
    replies = await link.call([("CONFIG", "GET", name) for name in _SETTINGS])
    found: dict[str, str] = {}
    for name, reply in zip(_SETTINGS, replies, strict=True):
        if not isinstance(reply, ReplyError) and len(reply) == 2:
            found[name] = reply[1].decode("utf-8", "replace")
    return list(facts(found, address))


def facts(found: Mapping[str, str], address: str) -> Iterator[Fact]:
    """What ``found``, settings by their names, say. Seconds as in Redis' documentation of its persistence."""
    policy = found.get("maxmemory-policy", "noeviction")
    # "volatile-..." removes only keys with a time to live, which a stream of ours has none of.
    if found.get("maxmemory", "0") != "0" and policy.startswith("allkeys-"):
        yield Fact(address, Trait.EVICTS, "maxmemory-policy", policy)
    appends = found.get("appendonly")
    if appends == "no":
        snapshots = found.get("save", "")
        if snapshots:
            yield Fact(address, Trait.LATE_SYNC, "save", snapshots, float(snapshots.split()[0]))
        elif "save" in found:
            yield Fact(address, Trait.VOLATILE, "appendonly", "no, and no snapshots")
    elif appends == "yes" and (sync := found.get("appendfsync", "always")) != "always":
        yield Fact(address, Trait.LATE_SYNC, "appendfsync", sync, 1.0 if sync == "everysec" else None)

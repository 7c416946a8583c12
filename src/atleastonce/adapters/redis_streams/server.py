"""What the server can, found out by asking it: versions are named differently by each of its kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from atleastonce.adapters.redis_streams.faults import ReplyError
from atleastonce.adapters.redis_streams.link import Link


class Server(NamedTuple):
    """Abilities that not every server has.

    Attributes:
        xackdel: one command acknowledges, and removes what every group has acknowledged (Redis 8.2).
        xnack: entries may be given back and then belong to no consumer (Redis 8.8).
        unfit: why nothing can be done with it at all: it is a Sentinel, or one of several shards; else "".
        evicts: the policy by which keys vanish when memory is short; "" where none is in force, or it is not to be found out.
    """

    xackdel: bool = False
    xnack: bool = False
    evicts: str = ""
    unfit: str = ""


async def look_at(link: Link) -> Server:
    """Ask. What may not be asked counts as absent."""
    questions = [("COMMAND", "INFO", "XACKDEL", "XNACK"), ("INFO", "memory"), ("INFO", "server"), ("CLUSTER", "INFO")]
    commands, memory, server, cluster = await link.call(questions)
    known = [False, False] if isinstance(commands, ReplyError) else [bool(each) for each in commands]
    evicts = ""
    rows = _rows(memory)
    policy = rows.get("maxmemory_policy", "")
    if rows.get("maxmemory", "0") != "0" and policy.startswith("allkeys-"):
        evicts = policy
    return Server(known[0], known[1], evicts, _unfit(_rows(server), _rows(cluster)))


def _rows(reply: Any) -> dict[str, str]:
    """What an ``INFO`` says; nothing where it may not be asked."""
    if not isinstance(reply, bytes):
        return {}
    return dict(row.partition(":")[::2] for row in reply.decode("utf-8", "replace").splitlines())


def _unfit(server: Mapping[str, str], cluster: Mapping[str, str]) -> str:
    if server.get("redis_mode") == "sentinel" or server.get("server_mode") == "sentinel":
        return "this is a Sentinel, which stores nothing; write the servers that it watches, redis://one,two/"
    shards = cluster.get("cluster_size", "0")
    if shards not in ("0", "1"):
        # One shard has every key, and its replicas are passed over like any.
        return f"this is a Redis Cluster of {shards} shards, which is not supported; a cluster of one shard is"
    return ""

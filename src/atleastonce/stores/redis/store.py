"""The store: a list is one script for each scope in it, all sent in one round trip."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from atleastonce.contract.outcomes import Code, Fault
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import ConfigurationError, MissingExtra
from atleastonce.stores import protocol
from atleastonce.stores.contract import LeaseStore
from atleastonce.stores.options import SCHEMA_VERSION, wrong_version
from atleastonce.stores.protocol import SECOND, micros
from atleastonce.stores.records import MISMATCH, Claim, ClaimRequest, Completion, Count, Lease, Stats, Status
from atleastonce.stores.redis import faults, scripts
from atleastonce.stores.telling import told
from atleastonce.urls import mask_url

if TYPE_CHECKING:
    from redis.asyncio import Redis

_T = TypeVar("_T")
_MOST_COUNTED = 200_000
_MANY = 128  # keys of one script: with more, Redis answers nobody else for over a millisecond


class RedisStore(LeaseStore):
    """Leases in Redis 7 or Valkey (``pip install "atleastonce[redis]"``). One server, or a primary with replicas.

    A failover to a replica may forget the last claims, since replication is asynchronous: at-least-once then, with fences
    that go on rising.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://`` for TLS.
        prefix: begins every key.
        connections: at most so many at a time.
        timeout: how long a call may take; then its outcome is unknown.
        allow_eviction: work with a server whose ``maxmemory-policy`` is not ``noeviction``. A claim that is evicted is a
            duplicate effect.
        client: further arguments for redis-py's ``Redis.from_url`` (``ssl_...``, ``credential_provider``).
    """

    scheme: ClassVar[str] = "redis"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "alo",
        connections: int = 8,
        timeout: Duration = "5s",
        connect_timeout: Duration = "5s",
        allow_eviction: bool = False,
        client: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not prefix or any(character in prefix for character in "{}* ?[]"):
            raise ConfigurationError(
                f"redis store: prefix={prefix!r} may not be empty nor hold braces, blanks or wildcards"
            )
        self._url = url
        self._prefix = prefix
        self._timeout = seconds(timeout, name="timeout", minimum=0.01)
        self._connect_timeout = seconds(connect_timeout, name="connect_timeout", minimum=0.01)
        self._connections = whole(connections, name="connections", high=1000)
        self._allow_eviction = allow_eviction
        self._more = dict(client or {})
        self._client: Redis | None = None
        self._slots = asyncio.Semaphore(self._connections)
        self._bases: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"RedisStore({mask_url(self._url)!r})"

    # ------------------------------------------------------------------------------------------------------- lifecycle

    async def init(self) -> None:
        """Mark the version, as `open` does too: there is nothing else to create."""
        client = self._made()
        try:
            await self._told(self._look(client))
        finally:
            await _end(client)

    def _made(self) -> Redis:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ModuleNotFoundError:
            raise MissingExtra("redis", "redis") from None
        try:
            return Redis.from_url(
                self._url,
                **{
                    "retry": Retry(NoBackoff(), 0),
                    "socket_connect_timeout": self._connect_timeout,
                    "socket_keepalive": True,
                    "decode_responses": False,
                    "protocol": 2,
                    **self._more,
                },
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"redis store {mask_url(self._url)}: {error}") from None

    async def _connect(self) -> None:
        client = self._made()
        try:
            await self._told(self._look(client))
        except BaseException:
            await _end(client)
            raise
        self._client = client

    async def _look(self, client: Redis) -> None:
        async with asyncio.timeout(self._timeout):
            memory = await client.info("memory")
            policy = memory.get("maxmemory_policy", "noeviction")
            if policy != "noeviction" and not self._allow_eviction:
                raise ConfigurationError(
                    f"redis store {mask_url(self._url)}: maxmemory-policy is {policy}, which evicts claims when memory is short, "
                    "and an evicted claim is a duplicate effect; set it to noeviction, or pass allow_eviction=True"
                )
            key = f"{self._prefix}:store:version"
            await client.set(key, SCHEMA_VERSION, nx=True)
            found: Any = await client.get(key)
            if found is None or bytes(found) != str(SCHEMA_VERSION).encode():
                raise wrong_version(
                    "redis store", mask_url(self._url), (found or b"unknown").decode("ascii", "replace")
                )

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _end(client)

    async def _told(self, work: Awaitable[_T]) -> _T:
        return await told(work, self.classify, f"redis store {mask_url(self._url)}")

    # ---------------------------------------------------------------------------------------------------------- leases

    def _key(self, scope: str, id: str) -> str:
        base = self._bases.get(scope)
        if base is None:
            # The digest in the braces chooses a cluster's slot; the id is last, so nothing in it can be taken for braces.
            if len(self._bases) > 1000:
                self._bases.clear()
            digest = hashlib.sha256(scope.encode()).hexdigest()[:16]
            base = self._bases[scope] = f"{self._prefix}:lease:{{{digest}}}:{scope}:"
        return base + id

    async def _ask(
        self, script: str, leases: Sequence[Lease | ClaimRequest], arguments: Callable[[int], Sequence[Any]]
    ) -> list[Any]:
        """The answer for each, in order: keys of one scope together, all scripts in one round trip."""
        groups: dict[str, list[int]] = {}
        for position, each in enumerate(leases):
            groups.setdefault(each.scope, []).append(position)
        calls = [some[at : at + _MANY] for some in groups.values() for at in range(0, len(some), _MANY)]
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        answers: list[Any] = [None] * len(leases)
        if self._client is None:
            raise RuntimeError("the store is open and has no client")
        async with asyncio.timeout(self._timeout), self._slots:
            while True:
                pipe: Any = self._client.pipeline(transaction=False)
                for positions in calls:
                    keys = [self._key(leases[at].scope, leases[at].id) for at in positions]
                    pipe.evalsha(digest, len(keys), *keys, *(value for at in positions for value in arguments(at)))
                replies = await pipe.execute(raise_on_error=False)
                if not any(faults.no_script(reply) for reply in replies):
                    break
                # A new or restarted server: all calls may be repeated, since each is recognised by its token.
                await self._client.script_load(script)
            for positions, reply in zip(calls, replies, strict=True):
                if isinstance(reply, Exception):
                    raise reply
                for at, answer in zip(positions, reply, strict=True):
                    answers[at] = answer
        return answers

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        def arguments(at: int) -> Sequence[Any]:
            each = requests[at]
            return each.token, each.fingerprint, micros(each.lease), micros(each.ttl)

        replies = await self._ask(scripts.CLAIM, requests, arguments)
        return [_answer(request, reply) for request, reply in zip(requests, replies, strict=True)]

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        span = micros(seconds)
        return [bool(x) for x in await self._ask(scripts.EXTEND, leases, lambda at: (leases[at].token, span))]

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        def arguments(at: int) -> Sequence[Any]:
            each = completions[at]
            return each.lease.token, micros(each.ttl), each.result

        return [bool(x) for x in await self._ask(scripts.COMPLETE, [each.lease for each in completions], arguments)]

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool]:
        return [bool(x) for x in await self._ask(scripts.RELEASE, leases, lambda at: (leases[at].token,))]

    # ---------------------------------------------------------------------------------------------------- housekeeping

    async def purge(self, limit: int = 1000) -> int:
        """0: Redis removes expired keys by itself."""
        self._check_open()
        return 0

    async def stats(self) -> Stats:
        """Counted by SCAN, up to 200 000 keys of the database; beyond them unknown. The age is not kept."""
        self._check_open()
        return await self._told(self._persist(self._count))

    async def _count(self) -> Stats:
        if self._client is None:
            raise RuntimeError("the store is open and has no client")
        age = "the age is not known: Redis forgets by itself"
        async with asyncio.timeout(self._timeout):
            if await self._client.dbsize() > _MOST_COUNTED:
                return Stats(Count(None, None, f"more than {_MOST_COUNTED} keys, which are too many to count; {age}"))
            rows, cursor = set(), 0
            while True:
                cursor, keys = await self._client.scan(cursor, match=f"{self._prefix}:lease:*", count=1000)
                rows.update(keys)
                if cursor == 0:
                    return Stats(Count(len(rows), None, age))

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)


def _answer(request: ClaimRequest, reply: list[Any]) -> Claim:
    kind = reply[0]
    if kind == b"new" or kind == b"reclaimed":
        return protocol.grant(request, int(reply[1]), int(reply[2]), doubt=kind == b"reclaimed")
    if kind == b"done":
        return Claim(Status.DONE, result=reply[1] or b"")
    if kind == b"busy":
        return protocol.busy(int(reply[1]) / SECOND)
    if kind == b"mismatch":
        return MISMATCH
    return Claim(Status.UNKNOWN, fault=Fault(Code.INTERNAL, detail=f"the script answered {kind!r}"))


async def _end(client: Redis) -> None:
    with contextlib.suppress(Exception):
        await client.aclose()

"""The store: a conditional write for each item, in parallel, since DynamoDB has no conditional write of a list."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import msgspec

from atleastonce.contract.outcomes import Code, Fault, Outcome
from atleastonce.contract.outcomes import Status as Ended
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import AtLeastOnceError, ConfigurationError, MissingExtra
from atleastonce.stores import protocol
from atleastonce.stores.contract import LeaseStore
from atleastonce.stores.dynamodb import items
from atleastonce.stores.options import SCHEMA_VERSION, missing_schema, wrong_version
from atleastonce.stores.protocol import SECOND, Record, State, micros
from atleastonce.stores.records import Claim, ClaimRequest, Completion, Count, Lease, Stats, Status
from atleastonce.stores.telling import as_error
from atleastonce.urls import BrokerUrl

_T = TypeVar("_T")
_R = TypeVar("_R")
_VERSION = {"pk": {"S": "#version"}}
_ROUNDS = 8  # times that somebody else may change a record between our look and our write


class DynamoDBStore(LeaseStore):
    """Leases in a DynamoDB table (``pip install "atleastonce[dynamodb]"``).

    Args:
        url: ``dynamodb:///table`` for AWS with boto3's own configuration, ``dynamodb://host:port/table?region=us-east-1`` for an
            emulator; a key and secret may stand before the host.
        create: make the table (on demand, with deletion by TTL) where it is missing.
        margin: how far two clients' notion of DynamoDB's clock may differ; a lease ends for others so much later. Below two
            seconds the resolution of its ``Date`` shows, and a holder may be overtaken early.
        threads: requests at a time.
        timeout: for one request.
    """

    scheme: ClassVar[str] = "dynamodb"

    def __init__(
        self, url: str, *, create: bool = False, margin: Duration = "5s", threads: int = 32, timeout: Duration = "5s"
    ) -> None:
        super().__init__()
        self._url = BrokerUrl.parse(url)
        self._table = self._url.path
        if not self._table or (set(self._url.query) - {"region"}):
            raise ConfigurationError(f'store URL "{self._url}": write it as dynamodb:///table?region=eu-west-1')
        self._create = create
        self._margin = micros(seconds(margin, name="margin"))
        self._size = whole(threads, name="threads", high=500)
        self._timeout = seconds(timeout, name="timeout", minimum=0.01)
        self._clock = items.ServerClock()
        self._threads: ThreadPoolExecutor | None = None
        self._client: Any = None

    def __repr__(self) -> str:
        return f"DynamoDBStore({str(self._url)!r})"

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def _made(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError:
            raise MissingExtra("dynamodb", "boto3") from None
        more: dict[str, Any] = {"region_name": self._url.query.get("region")}
        if self._url.hosts:
            more["endpoint_url"] = f"http://{self._url.host_ports(8000)[0]}"
            more["region_name"] = more["region_name"] or "us-east-1"
        if self._url.user:
            more.update(aws_access_key_id=self._url.user, aws_secret_access_key=self._url.password)
        config = Config(
            connect_timeout=self._timeout, read_timeout=self._timeout, max_pool_connections=self._size,
            retries={"mode": "standard", "max_attempts": 3},
        )  # fmt: skip
        return boto3.session.Session().client("dynamodb", config=config, **more)

    async def init(self) -> None:
        await asyncio.to_thread(self._told, self._prepare)

    def _prepare(self) -> None:
        client = self._made()
        try:
            client.create_table(
                TableName=self._table, BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            )  # fmt: skip
        except client.exceptions.ResourceInUseException:
            pass
        else:
            client.get_waiter("table_exists").wait(TableName=self._table, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
            client.update_time_to_live(
                TableName=self._table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"}
            )
        with contextlib.suppress(client.exceptions.ConditionalCheckFailedException):
            client.put_item(
                TableName=self._table, Item={**_VERSION, "v": {"N": str(SCHEMA_VERSION)}},
                ConditionExpression="attribute_not_exists(pk)",
            )  # fmt: skip
        self._check(client)

    def _check(self, client: Any) -> None:
        try:
            reply = client.get_item(TableName=self._table, Key=_VERSION, ConsistentRead=True)
        except client.exceptions.ResourceNotFoundException:
            raise missing_schema("dynamodb store", str(self._url)) from None
        self._clock.heard(reply)
        found = reply.get("Item", {}).get("v", {}).get("N")
        if found != str(SCHEMA_VERSION):
            raise wrong_version("dynamodb store", str(self._url), found or "unknown")

    def _told(self, work: Callable[[], _R]) -> _R:
        try:
            return work()
        except AtLeastOnceError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever boto3 makes of a failing service
            raise as_error(self.classify(error), f"dynamodb store {self._url}") from None

    async def _connect(self) -> None:
        if self._create:
            await self.init()

        def work() -> Any:
            client = self._made()
            self._check(client)
            return client

        self._client = await asyncio.to_thread(self._told, work)
        self._threads = ThreadPoolExecutor(self._size, "dynamodb store")

    async def _disconnect(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            await asyncio.to_thread(self._client.close)
        self._threads = self._client = None

    # ---------------------------------------------------------------------------------------------------------- leases

    async def _each(self, work: Callable[[_T], _R], given: Sequence[_T], failed: Callable[[Fault], _R]) -> list[_R]:
        """``work`` for each item, in parallel; one item's trouble is its own."""

        def guarded(one: _T) -> _R:
            try:
                return work(one)
            except Exception as error:  # noqa: BLE001 - whatever boto3 makes of a failing service
                return failed(self.classify(error))

        def several(part: Sequence[_T]) -> list[_R]:
            return [guarded(one) for one in part]

        loop = asyncio.get_running_loop()
        # A slice for each thread and not a job for each item.
        parts = [given[start :: self._size] for start in range(min(self._size, len(given)))]
        done = await asyncio.gather(*(loop.run_in_executor(self._threads, several, part) for part in parts))
        answers: list[_R] = [done[position % len(parts)][position // len(parts)] for position in range(len(given))]
        return answers

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        return await self._each(self._claim_one, requests, lambda fault: Claim(Status.UNKNOWN, fault=fault))

    def _claim_one(self, request: ClaimRequest) -> Claim:
        """As if nothing were known; where something is, by what it is, provided it still is."""
        pk = items.key(request.scope, request.id)
        known: Record | None = None
        for _ in range(_ROUNDS):
            seen = known
            if known is not None:
                # For others a lease and a life end later than for who has them.
                late = known.lease_until + (self._margin if known.state is State.HELD else 0)
                seen = msgspec.structs.replace(known, lease_until=late, expires=known.expires + self._margin)
            answer, fresh = protocol.claim(seen, request, self._clock.now())
            if fresh is None:
                return answer
            condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
            if known is not None:
                names = {":s": int(known.state), ":f": known.fence, ":u": known.lease_until}
                condition = {
                    "ConditionExpression": "s = :s AND f = :f AND u = :u",
                    "ExpressionAttributeValues": {name: {"N": str(value)} for name, value in names.items()},
                }
            found = self._wrote("put_item", Item=items.item(pk, fresh), **condition)
            if found is None:
                return answer
            known = items.record(found) if found else None
        return Claim(
            Status.UNKNOWN, fault=Fault(Code.CONFLICT, True, detail="others changed this record again and again")
        )

    def _wrote(self, operation: str, **arguments: Any) -> dict[str, Any] | None:
        """None if it was written, else what is there (empty: nothing)."""
        from botocore.exceptions import ClientError

        try:
            reply = getattr(self._client, operation)(
                TableName=self._table, ReturnValuesOnConditionCheckFailure="ALL_OLD", **arguments
            )
        except ClientError as error:
            self._clock.heard(error.response)
            if error.response.get("Error", {}).get("Code") != "ConditionalCheckFailedException":
                raise
            found: dict[str, Any] = error.response.get("Item", {})
            return found
        self._clock.heard(reply)
        return None

    async def _change(
        self, leases: Sequence[Lease], update: Callable[[int], tuple[str, dict[str, Any]]], again: State | None
    ) -> list[bool | Outcome]:
        def one(position: int) -> bool | Outcome:
            lease, (expression, values) = leases[position], update(position)
            found = self._wrote(
                "update_item",
                Key=items.key(lease.scope, lease.id),
                UpdateExpression=expression,
                ConditionExpression="t = :token AND s = :held",
                ExpressionAttributeValues={":token": {"B": lease.token}, ":held": {"N": "1"}, **values},
            )
            if found is None:
                return True
            old = items.record(found) if found else None
            return old is not None and old.token == lease.token and old.state is again

        return await self._each(one, range(len(leases)), lambda fault: Outcome(Ended.UNKNOWN, fault))

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool | Outcome]:
        def update(_: int) -> tuple[str, dict[str, Any]]:
            until = self._clock.now() + micros(seconds)
            return "SET u = :u, e = :u + k, x = :x + kx", {":u": _n(until), ":x": _n(until // SECOND)}

        return await self._change(leases, update, None)

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool | Outcome]:
        def update(at: int) -> tuple[str, dict[str, Any]]:
            now = self._clock.now()
            end = now + micros(completions[at].ttl)
            values = {
                ":s": _n(3),
                ":r": {"B": completions[at].result},
                ":u": _n(now),
                ":e": _n(end),
                ":x": _n(end // SECOND + 1),
            }
            return "SET s = :s, r = :r, u = :u, e = :e, x = :x", values

        return await self._change([each.lease for each in completions], update, State.DONE)

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool | Outcome]:
        def update(_: int) -> tuple[str, dict[str, Any]]:
            now = self._clock.now()
            return "SET s = :s, u = :u, e = :u + k, x = :x + kx", {":s": _n(2), ":u": _n(now), ":x": _n(now // SECOND)}

        return await self._change(leases, update, State.FREE)

    # ---------------------------------------------------------------------------------------------------- housekeeping

    async def purge(self, limit: int = 1000) -> int:
        """0: DynamoDB deletes by itself, days late; what has expired counts as absent at once."""
        self._check_open()
        return 0

    async def stats(self) -> Stats:
        self._check_open()
        found = await asyncio.to_thread(self._told, lambda: self._client.describe_table(TableName=self._table))
        return Stats(Count(found["Table"].get("ItemCount"), None, "counted by DynamoDB about every six hours; no age"))

    def classify(self, error: BaseException) -> Fault:
        return items.classify(error)


def _n(value: int) -> dict[str, str]:
    return {"N": str(value)}

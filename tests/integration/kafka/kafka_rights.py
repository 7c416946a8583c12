"""Users with exactly the rights that a test gives them, and the rights that the documentation names."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka_kit import message, opened
from kafka_servers import Server

from atleastonce import FailurePolicy, Queue, RetryChain, Service
from atleastonce.adapters.kafka.config import CLIENT_LOG
from atleastonce.channels import Channel, Source
from atleastonce.contract import Outgoing, Topology
from atleastonce.errors import AtLeastOnceError

PAGE = Path(__file__).parents[3] / "docs" / "brokers" / "kafka.md"
TOPIC, GROUP, IDS = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
READ, WRITE, CREATE, DELETE = AclOperation.READ, AclOperation.WRITE, AclOperation.CREATE, AclOperation.DELETE
DESCRIBE, CONFIGS, ALTER_CONFIGS = AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS, AclOperation.ALTER_CONFIGS
PATIENCE = 60.0
"""Seconds after which something that should happen at once, on a machine of its own, has failed."""

_LINE = re.compile(
    r"^\$ACLS --(topic|group) (orders\.?)( --resource-pattern-type prefixed)?((?: --operation \w+)+)$", re.M
)
_OPERATIONS = {"Read": READ, "Write": WRITE, "Create": CREATE, "DescribeConfigs": CONFIGS}


class Right(NamedTuple):
    """One operation on what has a name, or a name that begins so."""

    kind: ResourceType
    name: str
    operation: AclOperation
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name}{'*' if self.prefixed else ''} {self.operation.name}"


def documented(channel: str, group: str | None = None) -> list[Right]:
    """The rights of the page's block, with ``channel`` in the place of its example."""
    lines = _LINE.findall(PAGE.read_text())
    assert len(lines) == 4
    home = channel if group is None else f"{channel}.{group}"
    rights: list[Right] = []
    for kind, name, prefixed, operations in lines:
        what = f"{home}." if prefixed else channel if kind == "topic" or group is None else group
        assert name == ("orders." if prefixed else "orders")
        resource = TOPIC if kind == "topic" else GROUP
        rights += [Right(resource, what, _OPERATIONS[word], bool(prefixed)) for word in operations.split()[1::2]]
    return rights


def spelled(rights: Iterable[Right], names: Sequence[str]) -> list[Right]:
    """``rights`` with each prefix replaced by those of ``names`` that begin with it."""
    found = []
    for right in rights:
        named = [name for name in names if name.startswith(right.name)] if right.prefixed else [right.name]
        found += [Right(right.kind, name, right.operation) for name in named]
    return found


class Login:
    """A new user of ``server``, with ``rights``."""

    def __init__(self, server: Server, rights: Iterable[Right] = ()) -> None:
        self.name = f"user-{uuid.uuid4().hex[:8]}"
        self._server = server
        self._admin = AdminClient({"bootstrap.servers": server.plain}, logger=CLIENT_LOG)
        secret = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = self._admin.alter_user_scram_credentials([UserScramCredentialUpsertion(self.name, secret, b"pw")])
        for each in made.values():
            each.result()
        self.grant(*rights)

    def url(self, more: str = "") -> str:
        return self._server.url(self.name, "pw", more=f"&sasl.mechanisms=SCRAM-SHA-512{more}")

    def grant(self, *rights: Right) -> None:
        """Returns when the broker knows of them."""
        wanted = {self._binding(right) for right in rights}
        for each in self._admin.create_acls(list(wanted)).values() if wanted else ():
            each.result()
        self._await(lambda known: wanted <= known)

    def revoke(self, *rights: Right) -> None:
        """Returns when the broker knows of it."""
        gone = {self._binding(right) for right in rights}
        exact = [AclBindingFilter(*_fields(each)) for each in gone]
        for each in self._admin.delete_acls(exact).values():
            assert each.result()
        self._await(lambda known: not gone & known)

    def _binding(self, right: Right) -> AclBinding:
        pattern = ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL
        who = f"User:{self.name}"
        return AclBinding(right.kind, right.name, pattern, who, "*", right.operation, AclPermissionType.ALLOW)

    def _await(self, told: Callable[[set[AclBinding]], bool]) -> None:
        mine = AclBindingFilter(
            ResourceType.ANY,
            None,
            ResourcePatternType.ANY,
            f"User:{self.name}",
            None,
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        deadline = time.monotonic() + PATIENCE
        while not told(set(self._admin.describe_acls(mine).result())):
            assert time.monotonic() < deadline, "the broker does not tell of new rights"
            time.sleep(0.02)


def _fields(binding: AclBinding) -> tuple[object, ...]:
    return (
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


class Working:
    """A service whose handler fails until it is ``healed``; one retry."""

    def __init__(self, url: str, channel: Channel[Any], group: str | None = None, **more: Any) -> None:
        self.ran: list[bytes] = []
        self.healed = False
        self.service = Service("worker", broker=url)
        policy = FailurePolicy(in_place=None, chain=RetryChain("50ms"))
        where = {} if group is None else {"group": group}

        @self.service.consumer(channel, failure=policy, **where, **more)
        async def handle(body: bytes) -> None:
            self.ran.append(body)
            if not self.healed:
                raise ValueError("no")

    async def refused(self) -> AtLeastOnceError:
        """What it ends with by itself: at its start, or as soon as it has asked for messages."""
        with pytest.raises(AtLeastOnceError) as ended:
            await asyncio.wait_for(self.service.serve(), PATIENCE)
        return ended.value


@asynccontextmanager
async def owner(server: Server, *names: str) -> AsyncIterator[Any]:
    """Who may do everything, with one message in each of ``names``."""
    async with opened(f"kafka://{server.plain}") as adapter:
        queues = [Queue[Any](name, partitions=1) for name in names]
        await adapter.declare(Topology(channels=tuple(queues)))
        await send(adapter, *queues)
        yield adapter


async def send(adapter: Any, *queues: Queue[Any]) -> list[Any]:
    """One message to each."""
    return list(await adapter.send([Outgoing(queue, message(b"x")) for queue in queues]))


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"it never happened that {what}"
        await asyncio.sleep(0.05)


def without(rights: Iterable[Right], *missing: Right) -> list[Right]:
    kept = [right for right in rights if right not in missing]
    assert len(kept) == len(list(rights)) - len(missing)
    return kept


async def done(admin: Any, source: Source) -> bool:
    return not (await admin.backlog(source)).true_waiting

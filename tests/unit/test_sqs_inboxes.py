"""Inboxes on SQS: those of dead processes are found among many others, and looking for them harms nobody who asks."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("boto3", reason="boto3 is not installed")

from botocore.exceptions import ClientError

from atleastonce.adapters.sqs.inboxes import PREFIX, Inboxes

MANY = 700


class Account:
    """Queues by name with the time of their owners' last sign; lists them as SQS does, in pages that begin with the same names each
    time."""

    def __init__(self) -> None:
        self.queues: dict[str, int] = {}
        self.asked = 0
        self.fails: set[str] = set()

    @property
    def sqs(self) -> Account:
        return self

    def _may(self, what: str, code: str = "RequestThrottled") -> None:
        self.asked += 1
        if what in self.fails:
            raise ClientError({"Error": {"Code": code, "Message": "slow down"}}, what)

    def list_queues(self, QueueNamePrefix: str, MaxResults: int) -> dict[str, Any]:  # noqa: N803 - boto3's
        self._may("ListQueues")
        found = sorted(name for name in self.queues if name.startswith(QueueNamePrefix))
        more = {"NextToken": "more"} if len(found) > MaxResults else {}
        return {"QueueUrls": found[:MaxResults], **more}

    def list_queue_tags(self, QueueUrl: str) -> dict[str, Any]:  # noqa: N803 - boto3's
        self._may("ListQueueTags")
        return {"Tags": {"alo-seen": str(self.queues[QueueUrl])}}

    def delete_queue(self, QueueUrl: str) -> None:  # noqa: N803 - boto3's
        self._may("DeleteQueue")
        del self.queues[QueueUrl]

    def create_queue(self, QueueName: str, Attributes: Any, tags: Any) -> dict[str, Any]:  # noqa: N803 - boto3's
        self.queues[QueueName] = int(tags["alo-seen"])
        return {"QueueUrl": QueueName}

    def find(self, queue: str) -> str:
        raise ClientError({"Error": {"Code": "AWS.SimpleQueueService.NonExistentQueue", "Message": ""}}, "GetQueueUrl")

    def learn(self, queue: str, url: str) -> None: ...


def inboxes(account: Account, prefix: str = "") -> Inboxes:
    return Inboxes(account, account, prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "staging-"])
def test_the_dead_are_found_behind_more_living_than_one_look_has(prefix: str) -> None:
    account = Account()
    living = {f"{prefix}{PREFIX}{n * 0x0005_D3B1:032x}": int(time.time()) for n in range(MANY)}
    living |= {f"{prefix}{PREFIX}{n * (16**32 // MANY):032x}": int(time.time()) for n in range(MANY)}
    dead = {f"{prefix}{PREFIX}{digit}{'f' * 31}": int(time.time()) - 7200 for digit in "07f"}
    account.queues = {**living, **dead}
    ours = inboxes(account, prefix)
    for _ in range(2000):
        account.asked = 0
        ours.sweep()
        assert account.asked < 250
        if account.queues.keys() == living.keys():
            return
    pytest.fail(f"left: {dead.keys() & account.queues.keys()}")


@pytest.mark.parametrize("what", ["ListQueues", "ListQueueTags", "DeleteQueue"])
def test_what_keeps_it_from_sweeping_harms_nobody_who_asks(what: str) -> None:
    account = Account()
    account.queues = {f"{PREFIX}{'a' * 32}": 0}
    account.fails = {what}
    ours = inboxes(account)
    ours.keep(f"{PREFIX}{'b' * 32}")
    assert ours.unswept
    ours.sweep()
    assert not ours.unswept
    assert len(account.queues) == 2
    account.fails = set()
    ours.sweep()
    assert list(account.queues) == [f"{PREFIX}{'b' * 32}"]

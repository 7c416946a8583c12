"""Queues' attributes. Everything here blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.faults import classify
from atleastonce.adapters.sqs.topology import Plan
from atleastonce.channels import Queue
from atleastonce.contract import Code, Fact, Topology, Trait


def shown(topology: Topology, config: Config) -> dict[str, str]:
    """Our names of a topology's queues, by SQS' own."""
    queues = [each for each in topology.channels if isinstance(each, Queue)]
    queues += [*topology.dead_letters, *(delay.channel for delay in topology.delays)]
    found = {names.of_queue(queue, config.prefix): queue.name for queue in queues}
    return found | {names.queue_name(source, config.prefix): source.name for source in topology.sources}


class Reader:
    """Asks for each queue of a plan."""

    def __init__(self, clients: Clients, directory: Directory, config: Config) -> None:
        self._clients = clients
        self._directory = directory
        self._prefix = config.prefix
        self._largest = config.max_message_bytes

    def run(self, wanted: Plan, called: Mapping[str, str]) -> list[Fact]:
        """What the queues that exist are set to. Raises the client's errors."""
        facts: list[Fact] = []
        for queue in wanted.queues.values():
            try:
                url = self._directory.find(queue.name)
                found = self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            except Exception as error:
                if classify(error).code in (Code.NOT_FOUND, Code.PERMISSION):
                    continue
                raise
            facts += self._queue(called.get(queue.name, queue.name), found, called)
        return facts

    def _queue(self, name: str, found: Mapping[str, str], called: Mapping[str, str]) -> Iterator[Fact]:
        if kept := found.get("MessageRetentionPeriod"):
            yield Fact(name, Trait.RETENTION, "MessageRetentionPeriod", kept, float(kept))
        if size := found.get("MaximumMessageSize"):
            most = "most" if int(size) >= self._largest else ""
            yield Fact(name, Trait.MAX_BYTES, "MaximumMessageSize", size, float(size), most)
        net = _policy(found.get("RedrivePolicy"))
        if net and str(net.get("maxReceiveCount", "")).isdigit():
            below = str(net.get("deadLetterTargetArn", "")).rpartition(":")[2]
            most = str(net["maxReceiveCount"])
            where = called.get(below) or names.original(below, self._prefix)
            yield Fact(name, Trait.NET, "maxReceiveCount", most, float(most), where)


def _policy(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

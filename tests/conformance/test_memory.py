"""The memory broker keeps every promise but durability."""

import secrets
from typing import Any

import pytest

from atleastonce.channels import Queue
from atleastonce.testing.conformance import ConformanceSuite, Harness


class MemoryHarness(Harness):
    name = "memory"
    other_processes = False
    lease = 0.5

    def __init__(self) -> None:
        self.short_lease = {"lease": self.lease}
        self.url = f"memory://conformance-{secrets.token_hex(4)}"

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, fifo=True)

    def broker_version(self) -> str:
        return "memory (built in)"


class TestMemory(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> Harness:
        return MemoryHarness()

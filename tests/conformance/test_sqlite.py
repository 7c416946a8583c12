"""The embedded broker: all tests of a run share one file, as several processes of an application do."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from atleastonce.channels import Queue
from atleastonce.testing.conformance import ConformanceSuite, Harness


class SQLiteHarness(Harness):
    name = "sqlite"
    lease = 1.0

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.short_lease = {"lease": self.lease}

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, fifo=True)

    def broker_version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"


class TestSQLite(ConformanceSuite):
    @pytest.fixture
    def harness(self, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Harness:
        base = tmp_path_factory.getbasetemp()
        return SQLiteHarness((base if worker_id == "master" else base.parent) / "conformance.db")

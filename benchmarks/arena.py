"""Where contenders meet: one broker, its channels filled alike for each, every measurement a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
from loops import ours
from loops.common import Job, Result, run
from peers import peers_python

from atleastonce.errors import AtLeastOnceError

_MEASURE = Path(__file__).with_name("measure.py")
_SECONDS = 300  # for one measurement; one that takes longer is stuck

# One at a time is slow: a part of the messages gives the same rate per message.
_SLOW = {"naive": 2_000, "faststream": 4_000, "faststream-aiokafka": 4_000}
_LATENCY = {"messages": 1_500, "rate": 500.0}
_CONTENDERS = {
    "memory": ("ours", "adapter"),
    "sqlite": ("ours", "adapter", "raw", "naive"),
    "kafka": ("ours", "adapter", "raw", "naive", "faststream", "faststream-aiokafka"),
    "rabbitmq": ("ours", "adapter", "raw", "naive", "faststream"),
    "redis": ("ours", "adapter", "raw", "naive", "faststream"),
    "nats": ("ours", "adapter", "raw", "naive", "faststream"),
    "pubsub": ("ours", "adapter", "raw", "naive"),
    "sqs": ("ours", "adapter", "raw", "naive"),
}
# Each measurement has a queue of its own here, and takes it away again.
_OWN_QUEUES = ("rabbitmq", "redis", "nats", "pubsub", "sqs")


class Scenario(msgspec.Struct, frozen=True):
    """What is measured.

    Attributes:
        name: short, for programs.
        title: for people.
        kind: `Job.scenario`.
        spin: `Job.spin`.
    """

    name: str
    title: str
    kind: str
    spin: int = 0

    def runs(self, contender: str, broker: str) -> bool:
        """Whether it makes sense for ``contender``: a loop of one's own has only one kind of handler, for example."""
        if contender == "adapter":
            return self.kind == "consume"
        if contender == "faststream" and broker == "redis" and self.kind == "latency":
            return False  # what feeds the others writes no envelope of FastStream's
        if contender == "faststream-aiokafka":
            return self.kind in ("consume", "publish_each", "latency")
        if contender == "naive" and self.kind == "batch":
            return False
        if broker == "memory" and self.kind.startswith("publish"):
            return contender == "ours"
        return not (contender.startswith("faststream") and broker == "rabbitmq" and self.kind == "batch")


class Arena:
    """One broker. A context manager: removes its channels at the end."""

    def __init__(self, broker: str, url: str, version: str) -> None:
        self.broker = broker
        self.url = url
        self.version = version
        self.not_run: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="atleastonce-bench-")
        self._channels: list[str] = []
        self._run = secrets.token_hex(3)
        self._peers: Path | str | None = None

    @classmethod
    def for_broker(cls, name: str) -> Arena | str:
        """The arena, its broker started where it does not run; or why it cannot be had."""
        if name == "memory":
            return cls(name, "memory://bench", "in this process")
        if name == "sqlite":
            import sqlite3

            return cls(name, "sqlite", sqlite3.sqlite_version)
        from atleastonce.brokers import up

        found = up([name])
        if name not in found:
            return str(found.unavailable[name])
        return cls(name, found[name].url, found[name].version or "given")

    @property
    def address(self) -> str:
        """For other clients than ours."""
        return (
            self.url.removeprefix("kafka://") if self.broker == "kafka" else self.url.replace("rabbitmq://", "amqp://")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            with contextlib.suppress(Exception):  # what is left behind is a topic on a development broker
                self._client().delete(self.address, channel)
        self._folder.cleanup()

    def _client(self) -> Any:
        return importlib.import_module(f"loops.{self.broker}")

    # ----------------------------------------------------------------------------------------------- fighting

    def fight(
        self, scenario: Scenario, messages: int, rounds: int, only: tuple[str, ...] | None
    ) -> dict[str, list[Result | None]]:
        """Every contender once a round, in turns. None where a measurement failed; `not_run` says why."""
        contenders = [
            name
            for name in _CONTENDERS[self.broker]
            if scenario.runs(name, self.broker) and (only is None or name in only)
        ]
        results: dict[str, list[Result | None]] = {name: [] for name in contenders}
        for turn in range(rounds):
            for name in contenders:
                self._progress(f"{self.broker} {scenario.name} {turn + 1}/{rounds} {name}")
                try:
                    results[name].append(self._measure(scenario, name, messages))
                except (RuntimeError, AtLeastOnceError, subprocess.TimeoutExpired) as error:
                    results[name].append(None)
                    self.not_run[f"{scenario.name} {name}"] = str(error).strip().splitlines()[-1][:300]
        self._progress("")
        return results

    @staticmethod
    def _progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def _measure(self, scenario: Scenario, contender: str, messages: int) -> Result:
        count = min(messages, _SLOW.get(contender, messages))
        job = Job(
            scenario=scenario.kind,
            contender=contender,
            broker=self.broker,
            url=self.url,
            messages=count,
            spin=scenario.spin,
        )
        job.group = f"bench-{secrets.token_hex(4)}"
        feed: Callable[[], None] | None = None
        if scenario.kind == "latency":
            job.messages, job.rate = int(_LATENCY["messages"]), _LATENCY["rate"]
        if self.broker == "memory":
            job.channel = "orders"
        elif self.broker == "sqlite":
            self._prepare_sqlite(job)
        else:
            self._prepare(job, messages)
        if scenario.kind == "latency" and self.broker != "memory":
            feed = lambda: self._feed(job)  # noqa: E731 - a thread's target, decided above
        result = self._child(job, feed)
        self._check_settled(job)
        if self.broker in _OWN_QUEUES:
            self._client().delete(self.address, job.channel)
            self._channels.remove(job.channel)
        return result

    def _child(self, job: Job, feed: Callable[[], None] | None) -> Result:
        python: Path | str = sys.executable
        if job.contender.startswith("faststream"):
            self._peers = python = self._peers or peers_python()
            if not isinstance(python, Path):
                raise RuntimeError(python)
        command = [str(python), str(_MEASURE), msgspec.json.encode(job).decode()]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT)
        feeder = threading.Thread(target=feed) if feed else None
        if feeder is not None:
            feeder.start()
        try:
            output, errors = process.communicate(timeout=_SECONDS)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        finally:
            if feeder is not None:
                feeder.join()
        if process.returncode:
            raise RuntimeError((errors or "no result").strip())
        return msgspec.json.decode(output.strip().splitlines()[-1], type=Result)

    # ---------------------------------------------------------------------------------------------- channels

    def _prepare_sqlite(self, job: Job) -> None:
        path = Path(self._folder.name) / f"{secrets.token_hex(4)}.db"
        job.channel, job.address, job.url = "orders", str(path), f"sqlite:///{path}"
        count = 0 if job.scenario.startswith("publish") or job.scenario == "latency" else job.messages
        if job.contender in ("ours", "adapter"):
            run(ours.declare(job))
            if count:
                run(ours.load(job))
        else:
            from loops import sqlite

            sqlite.load(job.address, count)

    def _prepare(self, job: Job, messages: int) -> None:
        job.address = self.address
        client = self._client()
        loaded = not job.scenario.startswith("publish") and job.scenario != "latency"
        if self.broker == "kafka" and loaded:
            # A log is read by each group anew: loaded once for all.
            job.channel = f"bench-{self._run}-{messages}"
            if job.channel not in self._channels:
                self._channels.append(job.channel)
                client.load(self.address, job.channel, messages)
            return
        job.channel = f"bench-{secrets.token_hex(4)}"
        self._channels.append(job.channel)
        if self.broker == "kafka":
            client.create(self.address, job.channel)
            return
        run(ours.declare(job))
        if loaded and not (self.broker == "redis" and job.contender == "faststream"):  # it reads its own envelope alone
            client.load(self.address, job.channel, job.messages)

    def _feed(self, job: Job) -> None:
        """From another process than the consumer's, by the same means for all."""
        feeder = Job(
            scenario="feed",
            contender="ours" if self.broker == "sqlite" and job.contender == "ours" else "raw",
            broker=self.broker,
            url=job.url,
            address=job.address,
            channel=job.channel,
            messages=job.messages,
            rate=job.rate,
        )
        command = [sys.executable, str(_MEASURE), msgspec.json.encode(feeder).decode()]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, env=_ENVIRONMENT)

    def _check_settled(self, job: Job) -> None:
        """What is not settled was not done: a figure for it would be a lie."""
        if job.scenario.startswith("publish"):
            return
        left = 0
        if self.broker == "sqlite":
            from loops import sqlite

            mine = job.contender in ("ours", "adapter")
            left = run(ours.remaining(job)) if mine else sqlite.remaining(job.address)
        elif self.broker == "kafka":
            settled = self._client().settled(self.address, job.channel, job.group)
            # A slow contender reads a part of the log; committing in lists may have taken it a little further.
            left = max(0, job.messages - settled)
        elif self.broker in _OWN_QUEUES:
            left = self._client().remaining(self.address, job.channel)
        if left:
            raise RuntimeError(f"{left} of {job.messages} messages were not settled")


_ENVIRONMENT = {**os.environ, "PYTHONHASHSEED": "0"}

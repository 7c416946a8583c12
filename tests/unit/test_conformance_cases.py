"""The conformance cases must fail where they should: each is run against a broker with one planted fault."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from atleastonce import wire
from atleastonce.adapters.memory import MemoryAdapter
from atleastonce.adapters.memory.adapter import MemorySubscription
from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    ACK,
    OK,
    Ack,
    Adapter,
    Backlog,
    Code,
    Delivery,
    Drift,
    Fault,
    Listener,
    Outcome,
    Outgoing,
    Release,
    Retry,
    Settlement,
    Subscription,
    Topology,
    Window,
    rejected,
)
from atleastonce.message import Headers
from atleastonce.testing.conformance import Bench, ConformanceSuite, Harness, cases_of

# ---------------------------------------------------------------------------------------------------- planted faults


class Sends(MemoryAdapter):
    """Base of the mutants that change what is sent."""

    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return batch

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        outcomes = await super().send(self.change(list(batch)))
        return [*outcomes, *[OK] * len(batch)][: len(batch)]

    @staticmethod
    def rewrite(item: Outgoing, **fields: Any) -> Outgoing:
        return Outgoing(item.destination, msgspec.structs.replace(item.message, **fields), item.delay)


class LosesOne(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return batch[:-1] if len(batch) > 10 else batch


class RepeatsOne(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [*batch[:1], *batch]  # not last: a case may be over when it has seen all that it sent


class StripsBodies(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [self.rewrite(item, body=item.message.body.strip(b"\0")) for item in batch]


class Unwraps(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [self.rewrite(item, body=item.message.body.strip()) for item in batch]


class LosesKeys(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [self.rewrite(item, key=item.message.key or None) for item in batch[:0]] + [
            self.rewrite(item, key=item.message.key if item.message.key is not None else b"") for item in batch
        ]


class MergesHeaders(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [self.rewrite(item, headers=Headers(dict(item.message.headers.items()))) for item in batch]


class LowersHeaders(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [
            self.rewrite(item, headers=Headers((n.lower(), v) for n, v in item.message.headers.items()))
            for item in batch
        ]


class AddsHeaders(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [self.rewrite(item, headers=item.message.headers.set({"x-leak": "1"})) for item in batch]


class IgnoresKeys(Sends):
    """Keys arrive, and order nothing: FIFO channels are plain ones."""

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        channels = tuple(dataclasses.replace(each, fifo=False) for each in topology.channels if isinstance(each, Queue))
        sources = tuple(Source(each) for each in channels)
        return await super().declare(Topology(channels=channels, sources=sources), create=create)


class Reorders(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [*batch[1:], batch[0]]


class ForgetsDelays(Sends):
    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [Outgoing(item.destination, item.message) for item in batch]


class ConfirmsEverything(MemoryAdapter):
    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        await super().send(batch)
        return [OK] * len(batch)


class FailsWholeBatches(MemoryAdapter):
    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        outcomes = await super().send(batch)
        worst = next((outcome for outcome in outcomes if not outcome.ok), OK)
        return [worst] * len(batch)


class NeverCloses(MemoryAdapter):
    async def close(self) -> None:
        pass


class LeaksTasks(MemoryAdapter):
    async def open(self) -> None:
        await super().open()
        self.leak = asyncio.create_task(asyncio.sleep(20))


class CreatesWhenLooking(MemoryAdapter):
    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        return await super().declare(topology)


class HidesDrift(MemoryAdapter):
    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        await super().declare(topology, create=create)
        return []


class CountsUnknownAsNothing(MemoryAdapter):
    async def backlog(self, source: Source) -> Backlog:
        found = await super().backlog(source)
        return found if found.waiting is not None else Backlog(waiting=0, in_flight=0)


class RetriesEverything(MemoryAdapter):
    def classify(self, error: BaseException) -> Fault:
        return Fault(Code.UNAVAILABLE, retryable=True)


class BreaksTraces(Sends):
    """What goes back after a redrive begins a trace of its own."""

    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [
            self.rewrite(item, headers=item.message.headers.set({"traceparent": "00-0-0-00"}))
            if wire.REDRIVES in item.message.headers
            else item
            for item in batch
        ]


class RepeatsTraces(Sends):
    """A retry's copy has its trace's fields twice."""

    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [
            self.rewrite(item, headers=Headers([*item.message.headers.items(), ("tracestate", "a=b")]))
            if wire.ATTEMPT in item.message.headers
            else item
            for item in batch
        ]


class LimitsHeaders(Sends):
    """Takes eight fields, as no broker of ours does, and says so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.capabilities = msgspec.structs.replace(self.capabilities, max_headers=8)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        taken = [len(item.message.headers.items()) <= 8 for item in batch]
        await super().send([item for item, fits in zip(batch, taken, strict=True) if fits])
        return [OK if fits else rejected(Code.INVALID, "more than eight fields") for fits in taken]


class SaysItLimitsHeaders(LimitsHeaders):
    """And takes whatever comes."""

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await MemoryAdapter.send(self, batch)


class Reads(MemoryAdapter):
    """Base of the mutants whose subscriptions misbehave."""

    subscription: type[MemorySubscription] = MemorySubscription

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return self.subscription(self.broker, source, window, self.lease)


class IgnoresAcks(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            return [OK] * len(batch)


class AcksReleases(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            return await super().settle([(delivery, ACK) for delivery, _ in batch])


class AcksWholeBatches(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            if any(isinstance(verdict, Ack) for _, verdict in batch):
                batch = [(delivery, ACK) for delivery, _ in batch]
            return await super().settle(batch)


class AcksUpToHighest(Reads):
    """A log that commits the newest offset and forgets the holes below it."""

    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            outcomes = await super().settle(batch)
            top = max(cast(int, delivery.position) for delivery, _ in batch)
            below = [lease for seq, lease in list(self._out.items()) if seq < top]
            for lease in below:
                self._state.settle(lease, ACK, time.monotonic())
            return outcomes


class LastVerdictWins(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            for delivery, _ in batch:
                delivery.token.outcome = None
            return await super().settle(batch)


class AcceptsStale(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            await super().settle(batch)
            return [OK] * len(batch)


class ForgetsRetryDelays(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            return await super().settle([(d, Retry(0.0) if isinstance(v, Retry) else v) for d, v in batch])


class CountsNothing(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            return await super().settle([(d, Release() if isinstance(v, Retry) else v) for d, v in batch])


class IgnoresTheWindow(Reads):
    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return await super().subscribe(source, Window(10_000, window.bytes), listener)


class IgnoresPause(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def pause(self) -> None:
            pass


class NeverResumes(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def resume(self) -> None:
            pass


class Spins(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            deadline = time.monotonic() + max_wait
            got: Sequence[Delivery] = ()
            while not got and time.monotonic() < deadline:
                got = await super().receive(max_messages, 0)
            return got


class WaitsForBatches(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            deadline = time.monotonic() + min(max_wait, 3.5)
            got: list[Delivery] = []
            while len(got) < max_messages and (left := deadline - time.monotonic()) > 0:
                got += await super().receive(max_messages - len(got), left)
            return got


class NeverWaits(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            return await super().receive(max_messages, 0)


class LosesWhenCancelled(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            got = await super().receive(max_messages, max_wait)
            await asyncio.sleep(0.001)  # what it holds by now is gone when it is cancelled here
            return got


class Hoards(Reads):
    """Fetches its whole window at once and keeps what was not handed out when it is closed."""

    class subscription(MemorySubscription):  # noqa: N801
        hoard: list[Delivery]

        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            self.hoard = getattr(self, "hoard", [])
            if not self.hoard:
                self.hoard = list(await super().receive(1000, max_wait))
            got, self.hoard = self.hoard[:max_messages], self.hoard[max_messages:]
            return got


class EndlessLeases(MemoryAdapter):
    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return MemorySubscription(self.broker, source, window, 3600.0)


class HalfLeases(Reads):
    """Says one thing and does another: the message comes again before its lease is over."""

    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            self._lease, promised = self._lease / 4, self._lease
            try:
                got = await super().receive(max_messages, max_wait)
            finally:
                self._lease = promised
            for delivery in got:
                delivery.lease_until += promised * 3 / 4
            return got


class NeverExtends(Reads):
    class subscription(MemorySubscription):  # noqa: N801
        async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
            for delivery in deliveries:
                delivery.lease_until += seconds
            return [OK] * len(deliveries)


class AcksOnDelivery(Reads):
    """At most once: what was handed out is gone, whatever becomes of it."""

    class subscription(MemorySubscription):  # noqa: N801
        async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
            got = await super().receive(max_messages, max_wait)
            await super().settle([(delivery, ACK) for delivery in got])
            return got


class TellsEveryGroup(Sends):
    """What is sent to one group goes to its whole topic."""

    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        return [
            Outgoing(item.destination.channel, item.message) if isinstance(item.destination, Source) else item
            for item in batch
        ]


class MixesGroups(MemoryAdapter):
    """All groups of a topic are one."""

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        sources = tuple(Source(s.channel, "all") if s.group else s for s in topology.sources)
        return await super().declare(msgspec.structs.replace(topology, sources=sources), create=create)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return await super().subscribe(Source(source.channel, "all") if source.group else source, window, listener)


class Crosstalk(Sends):
    """What is sent to one queue ends up in another."""

    def change(self, batch: list[Outgoing]) -> list[Outgoing]:
        first = next(iter(self.broker._channels))
        return [Outgoing(Queue(first), item.message) for item in batch]


class CreatesWhatIsRead(MemoryAdapter):
    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        await self.declare(Topology(channels=(source.channel,), sources=(source,)))
        return await super().subscribe(source, window, listener)


# ------------------------------------------------------------------------------------------------------------- tests

PLANTED: list[tuple[str, type[MemoryAdapter]]] = [
    ("01", LosesOne),
    ("01", RepeatsOne),
    ("02", StripsBodies),
    ("03", ConfirmsEverything),
    ("03", FailsWholeBatches),
    ("04", Unwraps),
    ("05b", LowersHeaders),
    ("05c", MergesHeaders),
    ("06b", AddsHeaders),
    ("07", LosesKeys),
    ("10", LosesOne),
    ("10b", Reorders),
    ("11", FailsWholeBatches),
    ("12", ConfirmsEverything),
    ("14", NeverCloses),
    ("16", LosesOne),
    ("16", RepeatsOne),
    ("18", Crosstalk),
    ("19", MixesGroups),
    ("19b", MixesGroups),
    ("20", RepeatsOne),
    ("21", CreatesWhatIsRead),
    ("24b", CreatesWhenLooking),
    ("24c", HidesDrift),
    ("26", EndlessLeases),
    ("26", HalfLeases),
    ("27", IgnoresAcks),
    ("28", AcksReleases),
    ("28b", AcksWholeBatches),
    ("28c", CountsNothing),
    ("29", ForgetsRetryDelays),
    ("29b", ForgetsRetryDelays),
    ("29d", ForgetsDelays),
    ("30", LastVerdictWins),
    ("31", AcceptsStale),
    ("31b", AcceptsStale),
    ("32", AcceptsStale),
    ("33", AcksUpToHighest),
    ("34", AcksUpToHighest),
    ("35", NeverExtends),
    ("39", AcksReleases),
    ("39b", Hoards),
    ("41", Reorders),
    ("42", Reorders),
    ("42b", Reorders),
    ("43", ForgetsRetryDelays),
    ("44", IgnoresKeys),
    ("45", IgnoresKeys),
    ("46", IgnoresTheWindow),
    ("47", IgnoresPause),
    ("47", NeverResumes),
    ("48", Hoards),
    ("49", Spins),
    ("49", NeverWaits),
    ("49b", WaitsForBatches),
    ("53", LosesWhenCancelled),
    ("54", LeaksTasks),
    ("36", AcksOnDelivery),
    ("38", RepeatsOne),
    ("40", RepeatsOne),
    ("51", AcksReleases),
    ("51", RepeatsOne),
    ("51b", AcksReleases),
    ("52", AcksReleases),
    ("63", ForgetsRetryDelays),
    ("63", MixesGroups),
    ("63b", AcksOnDelivery),
    ("65", TellsEveryGroup),
    ("65b", AcksReleases),
    ("65c", AcksOnDelivery),
    ("67", BreaksTraces),
    ("67", RepeatsTraces),
    ("68", ForgetsRetryDelays),
    ("69b", CountsUnknownAsNothing),
    ("74", RetriesEverything),
]


class PlantedHarness(Harness):
    name = "planted"
    lease = 0.4
    patience = 1.5
    other_processes = False

    def __init__(self, mutant: type[MemoryAdapter]) -> None:
        self._mutant = mutant
        self._broker = f"planted-{secrets.token_hex(4)}"
        self.url = f"memory://{self._broker}"
        self.short_lease = {"lease": self.lease}

    def adapter(self, *, url: str | None = None, short_lease: bool = False) -> Adapter:
        return self._mutant(self._broker, lease=self.lease if short_lease else 30.0)

    def conflicting(self, name: str) -> Any:
        return Queue(name), Queue(name, fifo=True)


async def run_case(id: str, mutant: type[MemoryAdapter], monkeypatch: pytest.MonkeyPatch) -> None:
    (method,) = (name for name in dir(ConformanceSuite) if name.startswith(f"test_{id}_"))
    harness = PlantedHarness(mutant)

    def planted(url: str, options: dict[str, Any]) -> Adapter:  # what services open
        return harness.adapter(url=url, short_lease=bool(options))

    monkeypatch.setattr("atleastonce.broker.open_adapter", planted)
    adapter = harness.adapter()
    await adapter.open()
    bench = Bench(harness, adapter, id)
    try:
        await getattr(ConformanceSuite(), method)(bench)
    finally:
        await bench.close()
        if leak := getattr(adapter, "leak", None):
            leak.cancel()


@pytest.mark.parametrize(("id", "mutant"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
async def test_a_planted_fault_is_found(id: str, mutant: type[MemoryAdapter], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await run_case(id, mutant, monkeypatch)


@pytest.mark.parametrize("id", sorted({id for id, _ in PLANTED}))
async def test_without_the_fault_the_case_passes(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would prove nothing."""
    await run_case(id, MemoryAdapter, monkeypatch)


async def test_a_limit_of_header_fields_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker of ours has one, so this is the only run of that case."""
    await run_case("05h", LimitsHeaders, monkeypatch)
    with pytest.raises(AssertionError):
        await run_case("05h", SaysItLimitsHeaders, monkeypatch)


def test_case_ids_are_unique_and_names_are_sentences() -> None:
    cases = cases_of(ConformanceSuite)
    assert len(cases) > 80
    assert all(case.section and " " in case.name for case in cases)

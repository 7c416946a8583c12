"""H. Patterns over any broker: one effect a message, rows that leave, answers that find who asked, outages that burn nothing."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from atleastonce.broker import Broker, connect
from atleastonce.context import Context
from atleastonce.contract import Adapter, Code, Outcome, Outgoing, unknown
from atleastonce.engine.backoff import Backoff
from atleastonce.errors import RequestTimeout
from atleastonce.message import Headers, Message
from atleastonce.outbox import Outbox
from atleastonce.patterns.circuit_breaker import CircuitBreaker
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.patterns.once import Lease
from atleastonce.service import Service
from atleastonce.stores.memory import MemoryStore
from atleastonce.stores.sqlite import SQLiteStore
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import SERVICES
from atleastonce.testing.conformance.relay import Relay
from atleastonce.testing.conformance.services import Calls, running, service_on

_LOST_ANSWERS = 2


class LosesAnswers(Relay):
    """Publishes, and loses the first answers of the broker: as if the sender had died between the publish and its note of it."""

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner)
        self.left = _LOST_ANSWERS

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        outcomes = await super().send(batch)
        if self.left and batch:
            self.left -= 1
            return [unknown(Code.TIMEOUT, "the answer was lost")] * len(batch)
        return outcomes


class Forgetful(Service):
    """A service whose broker's first answers to what is published are lost."""

    def make_broker(self, url: str | None = None, *, no_wait: bool = False) -> Broker:
        broker = super().make_broker(url, no_wait=no_wait)
        broker.adapter = LosesAnswers(broker.adapter)
        return broker


def copies(message: Message, count: int) -> list[Message]:
    """The same message, published so many times by a producer that did not know whether it had."""
    return [Message(message.id, message.body, message.key, Headers(message.headers)) for _ in range(count)]


class Effects(Section):
    section = "H. Patterns"

    @requires(SERVICES)
    async def test_61_an_idempotent_consumer_has_one_effect_however_often_a_message_comes(self, bench: Bench) -> None:
        queue = bench.queue()
        service, runs, effects = service_on(bench, "workers"), Counter[str](), Counter[str]()

        @service.consumer(
            queue, failure=FailurePolicy(in_place=Backoff("50ms", max_attempts=5)), idempotency=Lease(MemoryStore())
        )
        async def charge(_: bytes, ctx: Context) -> None:
            runs[ctx.message.id] += 1
            if runs[ctx.message.id] == 1:  # after its claim: another one must not be turned away for ever
                raise ValueError("not yet")
            effects[ctx.message.id] += 1

        sent = bench.messages(20)
        async with running(bench, service):
            # Their own copies: a broker that drops repeated publishes has nothing to show here, and passes.
            await bench.send(queue, [copy for message in sent for copy in copies(message, 3)])
            await bench.eventually(lambda: len(effects) == len(sent), "each has its effect")
            await bench.send(queue, [last := bench.message()])
            await bench.eventually(lambda: effects[last.id], "all that came before is handled")
            await bench.eventually(lambda: not any(s.in_flight for s in service.status()), "nothing is left")
        assert effects == {message.id: 1 for message in [*sent, last]}

    @requires(SERVICES)
    async def test_62_an_outbox_skips_no_row_and_leaves_nothing_behind_whatever_becomes_of_its_publishes(
        self, bench: Bench
    ) -> None:
        queue = bench.queue(**bench.ordered)
        with tempfile.TemporaryDirectory(prefix="alo-conformance-") as folder:
            outbox = Outbox(SQLiteStore(Path(folder) / "shop.db"))
            reader, calls = service_on(bench, "reader"), Calls()
            relaying = service_on(bench, "relay", Forgetful, outbox=outbox)

            @reader.consumer(queue, concurrency=1)
            async def read(_: bytes, ctx: Context) -> None:
                calls.note(ctx)

            async with outbox:
                rows: list[str] = []
                undone = ""
                for begin in range(0, 30, 10):
                    async with outbox.transaction() as tx:
                        numbers = [b"%d" % n for n in range(begin, begin + 10)]
                        rows += await outbox.publish_many(tx, queue, numbers, key=lambda body: f"k{int(body) % 3}")
                try:
                    async with outbox.transaction() as tx:
                        undone = await outbox.publish(tx, queue, b"never")
                        raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
                async with running(bench, reader, relaying):
                    await bench.eventually(lambda: calls.counts.keys() >= set(rows), "every row is published")
            assert undone not in calls.counts, "what was undone has left"
            if bench.ordered:
                firsts = dict.fromkeys(call.message.id for call in calls.log)
                for n in range(3):
                    assert [id for id in firsts if id in rows[n::3]] == rows[n::3], "rows of one key changed places"

    @requires(SERVICES)
    async def test_64_a_reply_finds_its_request_and_a_late_one_is_dropped(self, bench: Bench) -> None:
        queue = bench.queue()
        service, gate, begun = service_on(bench, "answers"), asyncio.Event(), asyncio.Event()

        @service.responder(queue, concurrency=16)
        async def double(body: bytes) -> bytes:
            if body == b"slow":
                begun.set()
                await gate.wait()
            return body * 2

        harness = bench.harness
        async with (
            running(bench, service),
            connect(harness.url, dict(harness.options)) as one,
            connect(harness.url, dict(harness.options)) as other,
        ):
            asked = [(broker, b"%s%d;" % (name, n)) for n in range(10) for name, broker in ((b"a", one), (b"b", other))]
            answers = await asyncio.gather(*(b.request(queue, body, timeout=bench.patience) for b, body in asked))
            assert answers == [body * 2 for _, body in asked], "answers crossed"
            slow = asyncio.create_task(one.request(queue, b"slow", timeout="2s"))
            try:
                await slow
            except RequestTimeout:
                pass
            else:
                raise AssertionError("an answer before it was given")
            await bench.eventually(begun.is_set, "the slow one begins")
            gate.set()
            await bench.eventually(lambda: one.requests.late == 1, "its answer comes late, and is dropped")
            assert await one.request(queue, b"x", timeout=bench.patience) == b"xx"
            assert one.requests.waiting == 0

    @requires(SERVICES)
    async def test_66_an_outage_behind_the_handler_pauses_the_source_and_burns_no_attempts(self, bench: Bench) -> None:
        queue = bench.queue()
        service, calls, down = service_on(bench, "workers"), Calls(), True
        breaker = CircuitBreaker(failures=3, within="60s", open_for="300ms")

        @service.consumer(queue, failure=FailurePolicy(in_place=None), circuit=breaker, concurrency=1)
        async def charge(_: bytes, ctx: Context) -> None:
            calls.note(ctx)
            if down:
                raise ConnectionError("the bank is away")

        sent = bench.messages(40)
        async with running(bench, service):
            await bench.send(queue, sent)
            await bench.eventually(lambda: any(s.state == "paused" for s in service.status()), "it pauses")
            called = len(calls.log)
            await bench.eventually(lambda: len(calls.log) >= called + 2, "it looks whether the bank is back")
            assert len(calls.log) < len(sent), "what was down was called for each message"
            down = False
            await bench.eventually(lambda: calls.seen(sent), "all are handled once it is back")
        # What failed before the circuit opened had its one attempt; nothing of what the outage caught afterwards lost one.
        again = [call for call in calls.log if call.attempt > 1]
        assert not again, f"attempts were burnt: {[(call.message.id, call.attempt) for call in again]}"

"""H. Patterns over any broker: retries, and the way back from the dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import msgspec

from atleastonce import wire
from atleastonce.broker import Broker
from atleastonce.channels import Source
from atleastonce.context import Context
from atleastonce.contract import (
    ACK,
    NONE,
    Adapter,
    Counting,
    Drift,
    Listener,
    Outcome,
    Settlement,
    Subscription,
    Topology,
)
from atleastonce.contract import Window as Room
from atleastonce.errors import ConnectionLost
from atleastonce.message import HeaderValue, Message
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.patterns.redrive import Letter, redrive
from atleastonce.service import Service
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import DELAYS, SERVICES
from atleastonce.testing.conformance.reader import ids
from atleastonce.testing.conformance.relay import Relay, RelayedSubscription
from atleastonce.testing.conformance.services import EARLY, Call, Calls, running, service_on


class WithoutDelays(Relay):
    """The same broker, had it no delays of its own: delay channels are plain queues, and the engine holds what is in
    them."""

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner)
        self.capabilities = msgspec.structs.replace(inner.capabilities, delay=NONE)

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        rooms = tuple(delay.channel for delay in topology.delays)
        plain = Topology(
            channels=(*topology.channels, *rooms),
            sources=(*topology.sources, *map(Source, rooms)),
            dead_letters=topology.dead_letters,
        )
        return await self.inner.declare(plain, create=create)


class Holding(Service):
    """A service on a broker without delays."""

    def make_broker(self, url: str | None = None, *, no_wait: bool = False) -> Broker:
        broker = super().make_broker(url, no_wait=no_wait)
        broker.adapter = WithoutDelays(broker.adapter)
        return broker


class DiesBetween(Relay):
    """Dies after a copy was sent and before its original is settled, once ``survive`` settlements have gone through."""

    class Dying(RelayedSubscription):
        def __init__(self, inner: Subscription, survive: int) -> None:
            super().__init__(inner)
            self.survive = survive

        async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
            if self.survive <= 0:
                raise ConnectionLost("died between the copy and the settlement")
            self.survive -= 1
            return await super().settle(batch)

    async def subscribe(self, source: Source, window: Room, listener: Listener) -> Subscription:
        return self.Dying(await super().subscribe(source, window, listener), 0)


def steps(calls: Sequence[Call]) -> list[float]:
    """Seconds from each run to the next."""
    return [after.at - before.at for before, after in pairwise(calls)]


def assert_as_sent(found: Message, sent: Message) -> None:
    """Id, key, body and the sender's own header fields; ours may stand beside them."""
    assert (found.id, found.key, found.body) == (sent.id, sent.key, sent.body)
    own = [item for item in sent.headers.items() if not item[0].startswith(wire.PREFIX)]
    assert [item for item in found.headers.items() if item in own] == own


TRACE: list[tuple[str, HeaderValue]] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ("baggage", "userId=alice,serverNode=DF%2028,isProduction=false"),
]
"""The examples of the specifications."""


def traces_of(message: Message) -> list[tuple[str, HeaderValue]]:
    """What of a message's fields belongs to its trace."""
    names = {name for name, _ in TRACE}
    return [item for item in message.headers.items() if item[0].lower() in names]


class Patterns(Section):
    section = "H. Patterns"

    @requires(SERVICES)
    async def test_63_a_retry_chain_keeps_its_delays_and_its_message_and_ends_in_the_dead_letters(
        self, bench: Bench
    ) -> None:
        topic = bench.topic()
        billing, shipping = service_on(bench, "billing"), service_on(bench, "shipping")
        calls, others = Calls(), Calls()
        tiers = (0.3, 0.6)

        @billing.consumer(topic, failure=FailurePolicy(in_place=None, chain=RetryChain(*tiers)))
        async def charge(_: bytes, ctx: Context) -> None:
            calls.note(ctx)
            raise ValueError("no funds")

        @shipping.consumer(topic)
        async def pack(_: bytes, ctx: Context) -> None:
            others.note(ctx)

        poison = bench.message(b"\x00 poison \xff", key="customer", headers=[("tenant", "a"), ("Trace", "b")])
        async with running(bench, billing, shipping):
            await bench.send(topic, [poison])
            dead = await bench.read(Source(topic, "billing").dead_letter_channel)
            (grave,) = await dead.take(1, verdict=ACK)
            await bench.send(topic, [last := bench.message()])
            await bench.eventually(lambda: others.seen([last]), "the other group goes on")
        runs = calls.of(poison)
        assert [call.attempt for call in runs] == [1, 2, 3]
        for waited, tier in zip(steps(runs), tiers, strict=True):
            assert tier - EARLY <= waited <= tier + bench.harness.late, f"waited {waited:.2f} s instead of {tier} s"
        for found in (*(call.message for call in runs), grave.message):
            assert_as_sent(found, poison)
        headers = grave.message.headers
        assert headers.get(wire.ERROR_TYPE) == "ValueError"
        assert headers.get(wire.ERROR_MESSAGE) == "no funds"
        assert headers.get(wire.ERROR_STAGE) == "handler"
        assert headers.get(wire.ATTEMPT) == "3"
        assert headers.get(wire.GROUP) == "billing"
        assert (headers.get(wire.ORIGIN) or "").startswith(topic.name)
        assert others.counts == {poison.id: 1, last.id: 1}, "one group's retries reached another"

    @requires(SERVICES)
    async def test_63b_a_message_that_waits_for_its_retry_holds_up_nobody(self, bench: Bench) -> None:
        queue, delay = bench.queue(), 1.5
        service, calls = service_on(bench, "workers"), Calls()

        @service.consumer(queue, failure=FailurePolicy(in_place=None, chain=RetryChain(delay)), concurrency=1)
        async def handle(body: bytes, ctx: Context) -> None:
            if calls.note(ctx).attempt == 1 and body == b"slow":
                raise ValueError("not yet")

        slow, sent = bench.message(b"slow"), bench.messages(50)
        async with running(bench, service):
            await bench.send(queue, [slow, *sent])
            await bench.eventually(lambda: len(calls.of(slow)) == 2, "the retry runs", delay + bench.patience)
        order = ids_of(calls)
        assert order.index(slow.id, order.index(slow.id) + 1) == 51, "others waited for the retry"
        assert sorted(id for id in order if id != slow.id) == sorted(message.id for message in sent)

    @requires(SERVICES)
    async def test_65_redriven_messages_go_to_the_group_that_failed_them_and_to_no_other(self, bench: Bench) -> None:
        topic = bench.topic()
        home = Source(topic, "billing")
        buggy, fixed = service_on(bench, "billing"), service_on(bench, "billing")
        shipping = service_on(bench, "shipping")
        failed, calls, others = Calls(), Calls(), Calls()

        @buggy.consumer(topic, failure=FailurePolicy(in_place=None))
        async def charge(_: bytes, ctx: Context) -> None:
            failed.note(ctx)
            raise ValueError("the bug")

        @fixed.consumer(topic)
        async def charge_again(_: bytes, ctx: Context) -> None:
            calls.note(ctx)

        @shipping.consumer(topic)
        async def pack(_: bytes, ctx: Context) -> None:
            others.note(ctx)

        sent = [bench.message(b"%d" % n, headers=[("n", str(n))]) for n in range(30)]
        async with running(bench, shipping):
            async with running(bench, buggy):
                await bench.send(topic, sent)
                await bench.eventually(lambda: failed.seen(sent), "all fail")
            async with running(bench, fixed):
                assert await redriven(bench, home, lambda _: True, until=30) == 30
                await bench.eventually(lambda: calls.seen(sent), "all are handled")
                await bench.send(topic, [last := bench.message()])
                await bench.eventually(lambda: calls.seen([last]) and others.seen([last]), "both groups go on")
        twice = [
            (call.message.id, call.attempt, call.redrives) for call in calls.log if calls.counts[call.message.id] > 1
        ]
        assert not twice, f"handled twice (id, attempt, redrives): {sorted(twice)}"
        assert calls.counts == {message.id: 1 for message in [*sent, last]}
        assert others.counts == {message.id: 1 for message in [*sent, last]}, "a redrive reached another group"
        for message in sent:
            (call,) = calls.of(message)
            assert call.redrives == 1
            # Where hand-outs are counted roughly, one to the reader that had just left is an attempt more.
            assert call.attempt == 1 or bench.capabilities.delivery_count is Counting.APPROXIMATE
            assert_as_sent(call.message, message)
        assert await bench.others(await bench.read(home.dead_letter_channel)) == []

    @requires(SERVICES)
    async def test_65b_a_redrive_takes_what_is_wanted_and_leaves_the_rest_dead(self, bench: Bench) -> None:
        queue = bench.queue()
        home = Source(queue)
        service, calls = service_on(bench, "workers"), Calls()

        @service.consumer(queue, failure=FailurePolicy(in_place=None))
        async def handle(body: bytes, ctx: Context) -> None:
            if calls.note(ctx).redrives < 2 or body != b"even":
                raise ValueError("twice")

        odd, even = bench.messages(5), [bench.message(b"even") for _ in range(5)]

        def have_run(times: int) -> bool:
            return all(len(calls.of(message)) == times for message in even)

        def are_dead(letters: int) -> bool:
            # Counted when it is decided; there when its original is settled.
            states = service.status()
            return sum(each.counts["dead"] for each in states) == letters and not any(each.in_flight for each in states)

        async with running(bench, service):
            await bench.send(queue, [m for pair in zip(odd, even, strict=True) for m in pair])
            await bench.eventually(lambda: calls.seen([*odd, *even]), "all fail")
            for runs in (2, 3):
                # A run that has failed is not yet a dead letter; a redrive that comes too early would take some twice.
                await bench.eventually(partial(are_dead, 10 + 5 * (runs - 2)), "all are dead letters")
                assert await redriven(bench, home, lambda letter: letter.message.body == b"even", until=5) == 5
                await bench.eventually(partial(have_run, runs), "the wanted ones run again")
        assert all([call.redrives for call in calls.of(message)] == [0, 1, 2] for message in even)
        assert all(len(calls.of(message)) == 1 for message in odd)
        left = await (await bench.read(home.dead_letter_channel)).take(5, verdict=ACK)
        assert sorted(ids(left)) == sorted(message.id for message in odd)

    @requires(SERVICES)
    async def test_65c_a_redrive_that_dies_between_copy_and_settlement_loses_nothing(self, bench: Bench) -> None:
        queue = bench.queue()
        home = Source(queue)
        await bench.declare(queue, home.dead_letter_channel, dead_letters=[home.dead_letter_channel])
        sent = bench.messages(20)
        await bench.send(home.dead_letter_channel, sent)
        client = DiesBetween(await bench.client(short_lease=True))
        try:
            await bench.within(redrive(client, home))
        except ConnectionLost:
            pass
        else:
            raise AssertionError("it did not die")
        await bench.within(client.close())
        await bench.leases_end()
        await redriven(bench, home, lambda _: True, until=20)
        reader = await bench.read(queue)
        came = await reader.until([message.id for message in sent])
        came_twice = await bench.others(reader)
        assert {*ids(came), *came_twice} == {message.id for message in sent}
        assert await bench.others(await bench.read(home.dead_letter_channel)) == []

    @requires(SERVICES)
    async def test_65d_a_redrive_goes_no_faster_than_it_was_told(self, bench: Bench) -> None:
        queue, count, rate = bench.queue(), 15, 20.0
        home = Source(queue)
        await bench.declare(queue, home.dead_letter_channel, dead_letters=[home.dead_letter_channel])
        sent = bench.messages(count)
        await bench.send(home.dead_letter_channel, sent)
        begun = time.monotonic()
        done = await bench.within(redrive(bench.adapter, home, rate=rate))
        assert done.redriven == count
        # What goes at once at the end, a quarter of a second's worth, needs no wait behind it.
        assert time.monotonic() - begun >= count / rate - 0.25 - EARLY, "faster than it was told"
        reader = await bench.read(queue)
        await reader.until([message.id for message in sent])

    @requires(SERVICES)
    async def test_67_one_trace_leads_from_publish_through_retries_to_the_redrive(self, bench: Bench) -> None:
        """By the fields of W3C's Trace Context and Baggage, which whatever traces reads and writes: each run sees them as they were
        published, once, on every way that a message can take."""
        queue = bench.queue()
        home = Source(queue)
        service, calls = service_on(bench, "workers"), Calls()

        @service.consumer(queue, failure=FailurePolicy(in_place=None, chain=RetryChain(0.1)))
        async def handle(_: bytes, ctx: Context) -> None:
            if not calls.note(ctx).redrives:
                raise ValueError("not before the redrive")

        traced = bench.message(headers=TRACE)
        async with running(bench, service):
            await bench.send(queue, [traced])
            await bench.eventually(
                lambda: sum(each.counts.get("dead", 0) for each in service.status()) == 1, "it is a dead letter"
            )
            assert await redriven(bench, home, lambda letter: traces_of(letter.message) == TRACE, until=1) == 1
            await bench.eventually(lambda: len(calls.of(traced)) == 3, "it runs again")
        assert [call.redrives for call in calls.of(traced)] == [0, 0, 1]
        for call in calls.of(traced):
            assert traces_of(call.message) == TRACE

    @requires(SERVICES, DELAYS)
    async def test_68_a_retry_waits_as_long_in_the_engines_hands_as_in_the_brokers(self, bench: Bench) -> None:
        """The one behaviour that handlers may rely on, whoever does the waiting."""
        tiers = (0.3, 0.6)
        runs: list[list[Call]] = []
        for kind in (Service, Holding):
            queue = bench.queue(kind.__name__.lower())
            service, calls = service_on(bench, "workers", kind), Calls()

            @service.consumer(queue, failure=FailurePolicy(in_place=None, chain=RetryChain(*tiers)))
            async def handle(_: bytes, ctx: Context, calls: Calls = calls) -> None:
                if calls.note(ctx).attempt < 3:
                    raise ValueError("not yet")

            async with running(bench, service):
                if kind is Holding:
                    bench.removes(Topology(channels=tuple(Source(queue).retry_channel(tier) for tier in tiers)))
                await bench.send(queue, [message := bench.message(b"\x00\xff", headers=[("tenant", "a")])])
                await bench.eventually(lambda: len(calls.of(message)) == 3, "the third attempt runs")  # noqa: B023
            for call in calls.of(message):
                assert_as_sent(call.message, message)
            runs.append(calls.of(message))
        by_broker, by_engine = runs
        assert [call.attempt for call in by_broker] == [call.attempt for call in by_engine] == [1, 2, 3]
        for theirs, ours, tier in zip(steps(by_broker), steps(by_engine), tiers, strict=True):
            assert min(theirs, ours) >= tier - EARLY, f"{theirs:.2f} s and {ours:.2f} s instead of {tier} s"
            assert max(theirs, ours) <= tier + bench.harness.late, (
                f"{theirs:.2f} s and {ours:.2f} s instead of {tier} s"
            )


def ids_of(calls: Calls) -> list[str]:
    """The message ids of all runs, in order."""
    return [call.message.id for call in calls.log]


async def redriven(bench: Bench, home: Source, wanted: Callable[[Letter], bool], *, until: int) -> int:
    """Redrive what is wanted of ``home``'s dead letters, until so many went back: how many did. Brokers whose counts are
    approximate may need more than one run."""
    done = 0

    async def enough() -> bool:
        nonlocal done
        done += (await bench.within(redrive(bench.adapter, home, wanted=wanted))).redriven
        return done >= until

    await bench.eventually(enough, f"{until} dead letters are redriven")
    return done

"""A. Round trip and encoding: what goes in comes out, byte for byte."""

from __future__ import annotations

import time

from atleastonce.contract import ACK, RELEASE, Code, Status
from atleastonce.message import HeaderValue, Message
from atleastonce.testing.conformance.bench import Bench, assert_same, log_of
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.harness import RawMessage
from atleastonce.testing.conformance.needs import (
    BINARY_HEADERS,
    HEADER_COUNT_LIMIT,
    HEADER_SIZE_LIMIT,
    RAW_CLIENT,
    SIZE_LIMIT,
)
from atleastonce.testing.conformance.reader import ids
from atleastonce.testing.conformance.samples import (
    LOOKS_WRAPPED,
    OF_THE_BROKERS,
    UNICODE_VALUES,
    WEIRD_NAMES,
    WEIRD_VALUES,
)


class RoundTrip(Section):
    section = "A. Round trip and encoding"

    async def test_01_a_hundred_messages_arrive_once_with_id_key_headers_and_body(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = [bench.message(b"body %d" % n, key=f"k{n % 7}", headers=[("n", str(n))]) for n in range(100)]
        await bench.send(queue, sent)
        reader = await bench.read(queue)
        received = await reader.until([message.id for message in sent])
        by_id = {delivery.message.id: delivery.message for delivery in received}
        for message in sent:
            assert_same(by_id[message.id], message)
        await bench.others(reader)  # had one been repeated, it would have come before this
        found = log_of(sent, reader).check()
        assert found.ok and not found.duplicates, found  # noqa: PT018

    async def _survive(self, bench: Bench, sent: list[Message]) -> None:
        """Each is confirmed and arrives unaltered."""
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, sent)
        reader = await bench.read(queue)
        received = {d.message.id: d.message for d in await reader.until([message.id for message in sent])}
        for message in sent:
            assert_same(received[message.id], message)

    async def _survive_or_are_refused(self, bench: Bench, sent: list[Message]) -> None:
        """Each arrives unaltered, or is rejected and does not arrive."""
        queue = bench.queue()
        await bench.declare(queue)
        outcomes = await bench.outcomes(queue, sent)
        taken = [message for message, outcome in zip(sent, outcomes, strict=True) if outcome.ok]
        for message, outcome in zip(sent, outcomes, strict=True):
            assert outcome.status is not Status.UNKNOWN, f"{message.headers}: {outcome}"
        reader = await bench.read(queue)
        last = bench.message(b"last")
        await bench.send(queue, [last])
        received = {d.message.id: d.message for d in await reader.until([*(m.id for m in taken), last.id])}
        assert received.keys() == {last.id, *(message.id for message in taken)}
        for message in taken:
            assert_same(received[message.id], message)

    async def test_02_bodies_empty_tiny_binary_and_large(self, bench: Bench) -> None:
        bodies = [b"", b"\0", b"x", bytes(range(256)), b"\xff" * 3, bytes(range(256)) * 256]
        await self._survive(bench, [bench.message(body) for body in bodies])

    @requires(SIZE_LIMIT)
    async def test_02b_a_message_of_exactly_the_greatest_size(self, bench: Bench) -> None:
        limit = bench.capabilities.max_message_bytes or 0
        empty = bench.message(b"", headers=[("h", "v")])
        body = b"\xa5" * (limit - empty.size)
        await self._survive(bench, [bench.message(body, headers=[("h", "v")], id=empty.id)])

    @requires(SIZE_LIMIT)
    async def test_03_a_message_over_the_limit_is_refused_and_its_neighbours_go(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        limit = bench.capabilities.max_message_bytes or 0
        batch = [bench.message(b"before"), bench.message(b"x" * (limit + 1)), bench.message(b"after")]
        first, over, last = await bench.outcomes(queue, batch)
        assert (first.status, over.status, last.status) == (Status.OK, Status.REJECTED, Status.OK)
        assert over.fault is not None
        assert over.fault.code is Code.TOO_LARGE
        reader = await bench.read(queue)
        bench.assert_came(await reader.take(2), batch[::2])

    async def test_04_a_body_that_looks_like_an_envelope_is_not_unwrapped(self, bench: Bench) -> None:
        await self._survive(bench, [bench.message(body) for body in LOOKS_WRAPPED])

    async def test_05_header_values_survive_as_text(self, bench: Bench) -> None:
        await self._survive(bench, [bench.message(headers=[("weird", value)]) for value in WEIRD_VALUES])

    async def test_05b_header_names_survive_with_their_case(self, bench: Bench) -> None:
        await self._survive(bench, [bench.message(headers=[(name, "v")]) for name in WEIRD_NAMES])

    async def test_05c_header_fields_keep_their_order_and_their_duplicates(self, bench: Bench) -> None:
        fields: list[tuple[str, HeaderValue]] = [("b", "1"), ("a", "2"), ("b", "3"), ("B", "4"), ("a", "2")]
        await self._survive(bench, [bench.message(headers=fields)])

    async def test_05d_unicode_in_headers_survives_or_is_refused(self, bench: Bench) -> None:
        sent = [bench.message(headers=[("weird", value)]) for value in UNICODE_VALUES]
        if bench.capabilities.header_charset == "utf-8":
            await self._survive(bench, sent)
        else:
            await self._survive_or_are_refused(bench, sent)

    @requires(BINARY_HEADERS)
    async def test_05e_binary_header_values_survive(self, bench: Bench) -> None:
        await self._survive(
            bench, [bench.message(headers=[("b", v)]) for v in (b"\xff\xfe\0", b"\x80", bytes(range(128, 256)))]
        )

    async def test_05f_null_and_binary_header_values_survive_or_are_refused(self, bench: Bench) -> None:
        values: list[HeaderValue] = [None, b"\xff\xfe", b"\xc3\x28"]
        await self._survive_or_are_refused(bench, [bench.message(headers=[("v", value)]) for value in values])

    async def test_05g_thirty_headers_survive(self, bench: Bench) -> None:
        most = bench.capabilities.max_headers
        count = 30 if most is None else min(30, most - 1)  # one is the id
        await self._survive(bench, [bench.message(headers=[(f"h{n}", f"v{n}") for n in range(count)])])

    @requires(HEADER_COUNT_LIMIT)
    async def test_05h_too_many_headers_are_refused(self, bench: Bench) -> None:
        most = bench.capabilities.max_headers or 0
        await self._refused(bench, bench.message(headers=[(f"h{n}", "v") for n in range(most)]))

    @requires(HEADER_SIZE_LIMIT)
    async def test_05i_too_large_headers_are_refused(self, bench: Bench) -> None:
        most = bench.capabilities.max_header_bytes or 0
        await self._refused(bench, bench.message(headers=[("h", "v" * most)]))

    async def _refused(self, bench: Bench, message: Message) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        good = bench.message()
        refused, taken = await bench.outcomes(queue, [message, good])
        assert (refused.status, taken.status) == (Status.REJECTED, Status.OK)
        assert ids(await (await bench.read(queue)).take(1)) == [good.id]

    async def test_06_headers_of_brokers_names_neither_act_nor_change_nor_leak(self, bench: Bench) -> None:
        """Ours or any broker's: a user's field of that name is a user's field."""
        await self._survive_or_are_refused(bench, [bench.message(headers=[field]) for field in OF_THE_BROKERS])

    async def test_06b_no_header_appears_that_was_not_sent(self, bench: Bench) -> None:
        await self._survive(bench, [bench.message(), bench.message(headers=[("only", "one")])])

    async def test_07_keys_survive_and_no_key_stays_no_key(self, bench: Bench) -> None:
        keys: list[bytes | None] = [None, b"k", b"customer 7", b"\xff\0\x80", "ключ".encode(), b"k" * 200]
        await self._survive(bench, [bench.message(key=key) for key in keys])

    async def test_07b_the_time_of_publishing_is_right_or_unknown(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        before = time.time()
        await bench.send(queue, [bench.message()])
        (delivery,) = await (await bench.read(queue)).take(1)
        at = delivery.message.published_at
        assert at is None or before - 2 < at < time.time() + 2  # some brokers count in whole seconds

    @requires(RAW_CLIENT)
    async def test_08_a_message_of_a_raw_client_is_a_message(self, bench: Bench) -> None:
        assert bench.harness.raw is not None
        queue = bench.queue()
        await bench.declare(queue)
        foreign = RawMessage(b'{"from": "elsewhere"}', b"k", {"x-theirs": "1", "content-type": "application/json"})
        await bench.within(bench.harness.raw.publish(queue, foreign))
        reader = await bench.read(queue)
        (delivery,) = await reader.take(1)
        assert delivery.message.body == foreign.body
        assert delivery.message.id
        for name, value in foreign.headers.items():
            assert delivery.message.headers.get(name) == value
        await reader.settle([delivery], RELEASE)
        (again,) = await reader.take(1, verdict=ACK)
        assert again.message.id == delivery.message.id, "a derived id has to be the same at each delivery"

    @requires(RAW_CLIENT)
    async def test_08b_our_message_is_readable_by_a_raw_client(self, bench: Bench) -> None:
        assert bench.harness.raw is not None
        queue = bench.queue()
        await bench.declare(queue)
        message = bench.message(b'{"n": 1}', headers=[("content-type", "application/json"), ("tenant", "t-1")])
        await bench.send(queue, [message])
        read = await bench.within(bench.harness.raw.read(queue))
        assert read.body == message.body
        assert read.headers["tenant"] == "t-1"
        assert read.headers["alo-id"] == message.id

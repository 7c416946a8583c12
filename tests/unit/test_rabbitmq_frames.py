"""Frames in bulk: any cutting of the stream gives the same, and pika still has the places where ours hook in."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import socket
import struct
from typing import Any

import pytest

pytest.importorskip("pika", reason="pika is not installed")

from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection, _AsyncioIOServicesAdapter
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport, _AsyncTransportBase
from pika.adapters.utils.nbio_interface import AbstractStreamProtocol
from pika.connection import Connection
from pika.exceptions import ChannelClosed, InvalidFrameError

from atleastonce.adapters.rabbitmq.frames import (
    Sink,
    Wire,
    ack_frame,
    content_frames,
    nack_frame,
    publish_frame,
    reject_frame,
)
from atleastonce.silence import Silence


class Recorder(Sink):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def delivered(self, raw: Any) -> None:
        self.seen.append(("delivered", *raw))

    def confirmed(self, tag: int, multiple: bool, ok: bool) -> None:
        self.seen.append(("confirmed", tag, multiple, ok))

    def returned(self, code: int, text: str, exchange: str, routing_key: str, properties: bytes) -> None:
        self.seen.append(("returned", code, text, exchange, routing_key, properties))


class Passed(Wire):
    """A wire without a socket, which notes what is left to pika."""

    def __init__(self) -> None:
        self.sinks = {}
        self.silence = Silence()
        self._after = []
        self._frame_buffer = b""
        self.frames_received = self.bytes_received = 0
        self.left: list[Any] = []

    is_closed = False

    def _process_frame(self, value: Any) -> None:
        self.left.append(value)


def content(channel: int, method: Any, properties: Any, body: bytes, largest: int) -> bytes:
    pieces = [frame.Method(channel, method).marshal(), frame.Header(channel, len(body), properties).marshal()]
    pieces += [frame.Body(channel, body[at : at + largest]).marshal() for at in range(0, len(body), largest)]
    return b"".join(pieces)


@given(cuts=st.lists(st.integers(0, 2000)), body=st.binary(max_size=60), largest=st.integers(1, 30))
def test_any_cutting_of_the_stream_gives_the_same(cuts: list[int], body: bytes, largest: int) -> None:
    properties = spec.BasicProperties(message_id="m", headers={"a": "b"})
    encoded = b"".join(properties.encode())
    stream = b"".join(
        [
            content(7, spec.Basic.Deliver("tag", 300, True, "ex", "key"), properties, body, largest),
            frame.Heartbeat().marshal(),
            frame.Method(7, spec.Basic.Ack(5, True)).marshal(),
            frame.Method(8, spec.Basic.Ack(5, False)).marshal(),  # a channel without a sink
            content(7, spec.Basic.Return(312, "NO_ROUTE", "", "gone"), properties, b"", largest),
            frame.Method(7, spec.Basic.Nack(6, False)).marshal(),
            frame.Method(7, spec.Basic.QosOk()).marshal(),
        ]
    )
    wire, sink = Passed(), Recorder()
    wire.sinks[7] = sink
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    for begin, end in itertools.pairwise(edges):
        wire._on_data_available(stream[begin:end])
    assert sink.seen == [
        ("delivered", 300, True, b"ex", b"key", encoded, body),
        ("confirmed", 5, True, True),
        ("returned", 312, "NO_ROUTE", "", "gone", encoded),
        ("confirmed", 6, False, False),
    ]
    assert [(type(each), each.channel_number) for each in wire.left] == [
        (frame.Heartbeat, 0),
        (frame.Method, 8),
        (frame.Method, 7),
    ]
    assert wire.bytes_received == len(stream)
    assert wire._frame_buffer == b""


@pytest.mark.parametrize("size", [0, 1, 91, 92, 93, 184, 185, 1000])
def test_a_publish_is_what_pika_would_write(size: int) -> None:
    properties = spec.BasicProperties(message_id="m")
    body = bytes(range(256))[: size % 256] * 1 + bytes(size - size % 256)
    ours = publish_frame(3, "ex", "key") + b"".join(content_frames(3, b"".join(properties.encode()), body, largest=100))
    theirs = content(3, spec.Basic.Publish(exchange="ex", routing_key="key", mandatory=True), properties, body, 92)
    assert ours == theirs


def test_settlements_are_what_pika_would_write() -> None:
    tag = 2**40 + 1
    assert ack_frame(9, tag) == frame.Method(9, spec.Basic.Ack(tag)).marshal()
    assert ack_frame(9, tag, multiple=True) == frame.Method(9, spec.Basic.Ack(tag, True)).marshal()
    assert nack_frame(9, tag) == frame.Method(9, spec.Basic.Nack(tag, False, True)).marshal()
    assert reject_frame(9, tag, requeue=True) == frame.Method(9, spec.Basic.Reject(tag, True)).marshal()
    assert reject_frame(9, tag, requeue=False) == frame.Method(9, spec.Basic.Reject(tag, False)).marshal()


def test_a_frame_that_does_not_end_where_it_says_ends_the_connection() -> None:

    wire = Passed()
    wire.sinks[1] = Recorder()
    with pytest.raises(InvalidFrameError):
        wire._on_data_available(struct.pack(">BHI", 1, 1, 4) + b"abcd\x00")


def test_what_is_to_follow_a_read_follows_all_that_it_brought_also_its_failure() -> None:
    wire = Passed()
    wire.sinks[1] = sink = Recorder()
    confirm = frame.Method(1, spec.Basic.Ack(7)).marshal()
    told: list[int] = []

    def confirmed(*_: object) -> None:
        told.append(0)
        if len(told) == 1:
            wire.after_read(lambda: told.append(len(told)))

    sink.confirmed = confirmed  # type: ignore[method-assign]
    wire._on_data_available(confirm * 3)
    assert told == [0, 0, 0, 3]
    told.clear()
    with pytest.raises(InvalidFrameError):
        wire._on_data_available(confirm[:-1] + b"\0")
    with pytest.raises(InvalidFrameError):
        wire._on_data_available(confirm * 2 + confirm[:-1] + b"\0")
    assert told == [0, 0, 2]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError()])
def test_what_follows_a_read_and_fails_harms_neither_the_connection_nor_what_else_follows(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `Connection._on_data_available` raises ends the connection of all who read on it."""
    wire = Passed()
    wire.sinks[1] = sink = Recorder()
    told: list[str] = []

    def fail() -> None:
        raise error

    def confirmed(*_: object) -> None:
        wire.after_read(fail)
        wire.after_read(lambda: told.append("the other"))

    sink.confirmed = confirmed  # type: ignore[method-assign]
    wire._on_data_available(frame.Method(1, spec.Basic.Ack(7)).marshal())
    assert told == ["the other"]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_the_end_of_the_process_is_no_failure_of_what_follows_a_read() -> None:
    wire = Passed()

    def leave() -> None:
        raise SystemExit

    wire.after_read(leave)
    with pytest.raises(SystemExit):
        wire._on_data_available(frame.Heartbeat().marshal())


class Sending(Wire):
    """A wire on a socket of ours."""

    def __init__(self, ours: socket.socket) -> None:
        self.bytes_sent = self.frames_sent = 0
        self._after = []
        self._ahead = b""
        loop = asyncio.get_running_loop()
        adapter = _AsyncioIOServicesAdapter(loop)
        self.protocol = Protocol()
        self._transport = _AsyncPlaintextTransport(ours, self.protocol, adapter)


class Protocol(AbstractStreamProtocol):
    def __init__(self) -> None:
        self.over = asyncio.Event()

    def connection_made(self, transport: Any) -> None: ...

    def connection_lost(self, error: Any) -> None:
        self.over.set()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None: ...


async def test_what_the_socket_does_not_take_at_once_leaves_later_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    wire = Sending(ours)
    pieces = [bytes([n % 251]) * (1 + n * 997 % 30_000) for n in range(200)]
    for piece in pieces[:100]:
        wire.write([piece])
    wire.write(pieces[100:])
    assert wire._transport.get_write_buffer_size() > 0, "the socket took everything: the test shows nothing"
    everything, found = b"".join(pieces), bytearray()
    async with asyncio.timeout(30):
        while len(found) < len(everything):
            found += await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
    assert found == everything
    assert (wire.bytes_sent, wire.frames_sent) == (len(everything), len(pieces))
    assert wire._transport.get_write_buffer_size() == 0
    wire._transport.abort()
    theirs.close()


async def test_what_goes_ahead_leaves_with_what_follows_or_alone_and_not_if_that_is_refused() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps writes apart
    ours.setblocking(False)
    theirs.setblocking(False)
    wire = Sending(ours)
    with wire.ahead(b"acks"):
        wire.write([b" commit"])
    with wire.ahead(b"acks alone"):
        pass  # pika waits for the answer to an earlier question
    with pytest.raises(ChannelClosed), wire.ahead(b"acks of a closed channel"):
        raise ChannelClosed(0, "")
    wire.write([b"another channel's"])
    assert [theirs.recv(100) for _ in range(3)] == [b"acks commit", b"acks alone", b"another channel's"]
    assert wire.bytes_sent == len(b"acks commitacks aloneanother channel's")
    wire._transport.abort()
    theirs.close()


async def test_the_end_of_a_connection_is_heard_by_pika_and_not_by_who_writes() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Sending(ours)
    theirs.close()
    wire.write([b"x"])
    wire.write([b"y"])
    async with asyncio.timeout(30):
        await wire.protocol.over.wait()
    wire.write([b"z"])


def test_pika_has_the_places_where_ours_hook_in() -> None:
    """They are not public. A release without them must fail here, and not lose deliveries."""

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(Connection._on_data_available) == ["self", "data_in"]
    assert "self._on_data_available(data)" in inspect.getsource(BaseConnection._proto_data_received)
    assert parameters(Connection._process_frame) == ["self", "frame_value"]
    assert parameters(Connection._output_marshaled_frames) == ["self", "marshaled_frames"]
    assert "self._adapter_emit_data(" in inspect.getsource(Connection._output_marshaled_frames)
    assert parameters(BaseConnection._adapter_emit_data) == ["self", "data"]
    assert parameters(Connection._terminate_stream) == ["self", "error"]
    assert parameters(BaseConnection._proto_connection_made) == ["self", "transport"]
    assert "self._MAX_RECV_BYTES" in inspect.getsource(_AsyncTransportBase._consume)
    assert "bytes_consumed < self._MAX_CONSUME_BYTES" in inspect.getsource(_AsyncTransportBase._consume)
    assert "self._frame_buffer" in inspect.getsource(Connection._init_connection_state)
    assert issubclass(Wire, AsyncioConnection)

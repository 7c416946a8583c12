"""Frames of messages and acknowledgements, read and written in bulk.

pika handles the connection: handshake, TLS, heartbeats, channels, declarations. What comes by the thousand (deliveries,
confirms, returns; publishes and acknowledgements) goes past its per-frame objects and callback tables, which cost 40-70 µs for
each message, and past its decoder of properties (see `atleastonce.adapters.rabbitmq.table`). What of
pika this rests on is checked by ``tests/unit/test_rabbitmq_frames.py``.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from pika import frame as pika_frame
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport
from pika.exceptions import InvalidFrameError

from atleastonce.errors import ends_process
from atleastonce.silence import Silence

log = logging.getLogger("atleastonce.rabbitmq")

FRAME_END: Final = 0xCE
OVERHEAD: Final = 8
"""Bytes of a frame around its payload."""

_HEAD = struct.Struct(">BHI")
_METHOD = struct.Struct(">I")
_TAG = struct.Struct(">Q")
_CONTENT = struct.Struct(">HHQ")
_SETTLE = struct.Struct(">BHIIQBB")
_CODE = struct.Struct(">H")
_CLASS_BASIC = 60
_DELIVER, _RETURN, _ACK, _NACK = 0x003C003C, 0x003C0032, 0x003C0050, 0x003C0078
_REJECT, _PUBLISH = 0x003C005A, 0x003C0028
_READ_SIZE = 65_536

Raw = tuple[int, bool, bytes, bytes, bytes, bytes]
"""Delivery tag, redelivered, exchange, routing key, properties, body."""


class Sink:
    """Takes what arrives on one channel. Every method is called on the event loop, from the socket's reader."""

    def __init__(self) -> None:
        self.method: tuple[int, Any] | None = None
        self.properties = b""
        self.missing = 0
        self.fragments: list[bytes] = []

    def delivered(self, raw: Raw) -> None:
        """A message for a consumer."""

    def confirmed(self, tag: int, multiple: bool, ok: bool) -> None:
        """The broker has taken (``ok``) or refused publishes."""

    def returned(self, code: int, text: str, exchange: str, routing_key: str, properties: bytes) -> None:
        """A mandatory publish that no queue got; its confirm follows."""


class Wire(AsyncioConnection):  # type: ignore[misc]
    """pika's connection with a fast lane for the channels that have a sink. ``silence`` is told of all that is read; of what is
    waited for by who asks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sinks: dict[int, Sink] = {}
        self.silence = Silence()
        self._after: list[Callable[[], None]] = []
        self._ahead = b""
        self._frame_buffer = b""
        super().__init__(*args, **kwargs)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Send whole frames, in order."""
        self._output_marshaled_frames(pieces)

    @contextlib.contextmanager
    def ahead(self, frames: bytes) -> Iterator[None]:
        """What is sent within leaves together with ``frames``, and behind them. If pika keeps it back, they leave alone. If it
        refuses, as on a channel that is closed, they do not leave: there they would end the connection."""
        self._ahead = frames
        try:
            yield
            if left := self._ahead:
                self._ahead = b""
                self.write((left,))
        finally:
            self._ahead = b""

    def after_read(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once all that the present read of the socket has brought is told. What it raises is logged."""
        self._after.append(call)

    def _adapter_emit_data(self, data: bytes) -> None:
        """Where nothing waits to be sent it goes to the socket at once. pika has the loop look first whether it takes anything: a
        turn and two calls of the system for each write, a fifth of what a single answer costs."""
        if self._ahead:
            self.bytes_sent += len(self._ahead)
            data, self._ahead = self._ahead + data, b""
        transport = self._transport
        # Not with TLS, whose writes may wait for a read.
        if isinstance(transport, _AsyncPlaintextTransport) and not transport.get_write_buffer_size():
            # Of an error pika hears when it writes what is left.
            with contextlib.suppress(OSError, AttributeError):  # the socket is None after the end
                data = data[transport._sock.send(data) :]
        if data:
            super()._adapter_emit_data(data)

    def abort(self, error: Exception) -> None:
        """End the connection without a word to the broker, which may not be listening."""
        self._terminate_stream(error)

    def _proto_connection_made(self, transport: Any) -> None:
        # pika reads 4 KiB at a time: 32 reads and as many copies for each frame of a large body.
        transport._MAX_RECV_BYTES = _READ_SIZE
        if isinstance(transport, _AsyncPlaintextTransport):
            # One read each time: to find that there is nothing more costs as much again. If there is, the loop says so.
            transport._MAX_CONSUME_BYTES = 1
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        self.silence.heard()
        try:
            self._read(data_in)
        finally:
            if self._after:
                after, self._after = self._after, []
                for call in after:
                    try:
                        call()
                    except BaseException as error:
                        # pika would end the connection, and with it all that others read here.
                        if ends_process(error):
                            raise
                        log.exception("what came with a read of the socket could not be told to the end")

    def _read(self, data_in: bytes) -> None:
        if not self.sinks:
            super()._on_data_available(data_in)
            return
        data = self._frame_buffer + data_in if self._frame_buffer else data_in
        self._frame_buffer = b""
        at, end = 0, len(data)
        sinks = self.sinks
        while end - at >= OVERHEAD:
            kind, number, size = _HEAD.unpack_from(data, at)
            stop = at + OVERHEAD + size
            if stop > end:
                break
            if data[stop - 1] != FRAME_END:
                raise InvalidFrameError("a frame does not end where it says")
            sink = sinks.get(number)
            if sink is None or not _take(sink, kind, data, at + 7, stop - 1):
                _, frame = pika_frame.decode_frame(data[at:stop])
                self.bytes_received += stop - at
                self._process_frame(frame)
                if self.is_closed:
                    return
            else:
                self.frames_received += 1
                self.bytes_received += stop - at
            at = stop
        self._frame_buffer = data[at:]


def _take(sink: Sink, kind: int, data: bytes, at: int, stop: int) -> bool:
    """Let ``sink`` have the frame with the payload ``data[at:stop]``; False for one that is pika's."""
    if kind == 1:
        method = _METHOD.unpack_from(data, at)[0]
        at += 4
        if method == _DELIVER:
            at += 1 + data[at]  # the consumer's tag: a channel here has one consumer
            tag = _TAG.unpack_from(data, at)[0]
            exchange = at + 10
            key = exchange + data[at + 9]
            sink.method = (
                method,
                (tag, data[at + 8] == 1, data[exchange:key], data[key + 1 : key + 1 + data[key]]),
            )
        elif method in (_ACK, _NACK):
            sink.confirmed(_TAG.unpack_from(data, at)[0], bool(data[at + 8] & 1), method == _ACK)
        elif method == _RETURN:
            code = _CODE.unpack_from(data, at)[0]
            texts = []
            at += 2
            for _ in range(3):
                texts.append(data[at + 1 : at + 1 + data[at]].decode("utf-8", "replace"))
                at += 1 + data[at]
            sink.method = (method, (code, *texts))
        else:
            return False
        return True
    if sink.method is None:
        return False
    if kind == 2:
        sink.missing = _CONTENT.unpack_from(data, at)[2]
        sink.properties = data[at + 12 : stop]
        if sink.missing == 0:
            _complete(sink, b"")
        return True
    if kind != 3:
        return False
    body = data[at:stop]
    sink.missing -= len(body)
    if sink.missing > 0:
        sink.fragments.append(body)
    elif sink.fragments:
        sink.fragments.append(body)
        _complete(sink, b"".join(sink.fragments))
        sink.fragments = []
    else:
        _complete(sink, body)
    return True


def _complete(sink: Sink, body: bytes) -> None:
    pending, sink.method = sink.method, None
    if pending is None:
        return
    method, fields = pending
    if method == _DELIVER:
        sink.delivered((*fields, sink.properties, body))
    else:
        code, text, exchange, routing_key = fields
        sink.returned(code, text, exchange, routing_key, sink.properties)


def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes((len(raw),)) + raw


def publish_frame(channel: int, exchange: str, routing_key: str, *, mandatory: bool = True) -> bytes:
    """The method frame of a ``basic.publish``: the same for every message of a route."""
    bits = b"\1" if mandatory else b"\0"
    payload = _METHOD.pack(_PUBLISH) + b"\0\0" + _short(exchange) + _short(routing_key) + bits
    return _HEAD.pack(1, channel, len(payload)) + payload + b"\xce"


def content_frames(channel: int, properties: bytes, body: bytes, largest: int) -> list[bytes]:
    """The header frame and body frames of a message, in frames of at most ``largest`` bytes."""
    frames = [
        _HEAD.pack(2, channel, 12 + len(properties)),
        _CONTENT.pack(_CLASS_BASIC, 0, len(body)),
        properties,
        b"\xce",
    ]
    room = largest - OVERHEAD
    if len(body) <= room:
        if body:
            frames += (_HEAD.pack(3, channel, len(body)), body, b"\xce")
        return frames
    for start in range(0, len(body), room):
        part = body[start : start + room]
        frames += (_HEAD.pack(3, channel, len(part)), part, b"\xce")
    return frames


def ack_frame(channel: int, tag: int, multiple: bool = False) -> bytes:
    """``basic.ack``."""
    return _SETTLE.pack(1, channel, 13, _ACK, tag, multiple, FRAME_END)


def nack_frame(channel: int, tag: int) -> bytes:
    """``basic.nack`` with requeue."""
    return _SETTLE.pack(1, channel, 13, _NACK, tag, 2, FRAME_END)


def reject_frame(channel: int, tag: int, requeue: bool) -> bytes:
    """``basic.reject``."""
    return _SETTLE.pack(1, channel, 13, _REJECT, tag, requeue, FRAME_END)

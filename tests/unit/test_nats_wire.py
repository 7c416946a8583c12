"""The reader of NATS' protocol, cut at every byte; and the requests of a pull consumer, status by status."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from atleastonce.adapters.nats.pulls import Pulls, Said
from atleastonce.adapters.nats.wire import Wire
from atleastonce.contract import Window

STREAM = (
    b"PING\r\n"
    b"MSG a 1 5\r\nhello\r\n"
    b"+OK\r\n"
    b"MSG a.b 1 reply.to 0\r\n\r\n"
    b"HMSG  c\t1  12 15\r\nNATS/1.0\r\n\r\nbod\r\n"
    b"HMSG c 1 back 16 16\r\nNATS/1.0 408\r\n\r\n\r\n"
    b"MSG unknown 9 3\r\nabc\r\n"
    b'INFO {"max_payload": 99, "connect_urls": ["h:1"]}\r\n'
    b"PONG\r\n"
    b"MSG last 1 6\r\n\r\nMSG \r\n"
)
WANTED = [
    (b"a", b"", b"", b"hello"),
    (b"a.b", b"reply.to", b"", b""),
    (b"c", b"", b"NATS/1.0\r\n\r\n", b"bod"),
    (b"c", b"back", b"NATS/1.0 408\r\n\r\n", b""),
    (b"last", b"", b"", b"\r\nMSG "),
]


def wire() -> tuple[Wire, list[tuple[bytes, bytes, bytes, bytes]], list[bytes]]:
    made = Wire()
    found: list[tuple[bytes, bytes, bytes, bytes]] = []
    written: list[bytes] = []
    made.put = written.append  # type: ignore[assignment,method-assign]
    made.listen("whatever", lambda *message: found.append(message))
    written.clear()
    return made, found, written


def test_a_stream_is_read_alike_wherever_it_is_cut() -> None:
    for size in range(1, len(STREAM) + 1):
        made, found, written = wire()
        for begin in range(0, len(STREAM), size):
            made.feed(STREAM[begin : begin + size])
        assert found == WANTED, f"in pieces of {size}"
        assert written == [b"PONG\r\n"]
        assert (made.largest, made.discovered) == (99, ("h:1",))


def test_a_large_message_in_small_pieces_is_joined_once() -> None:
    made, found, _ = wire()
    body = bytes(1 << 22)
    data = b"MSG a 1 %d\r\n%b\r\n" % (len(body), body)
    for begin in range(0, len(data), 4096):
        made.feed(data[begin : begin + 4096])
    assert found == [(b"a", b"", b"", body)]


@pytest.mark.parametrize("line", [b"HTTP/1.1 400 Bad Request\r\n", b"MSG a 1 x\r\n", b"MSG\r\n", b"INFO {\r\n"])
def test_another_protocol_is_an_error(line: bytes) -> None:
    made, _, _ = wire()
    with pytest.raises((ValueError, IndexError)):  # the reader ends the connection over any
        made.feed(line)


def test_the_client_has_the_hooks_that_are_used() -> None:
    """They are not public: a release of nats-py without them must not pass unseen."""
    hooks = ("_select_next_server", "_connect_to_server", "_process_op_err", "_close", "_read_loop", "_ping_interval")
    assert all(callable(getattr(Client, name)) for name in hooks)
    fields = ("_server_pool", "_server_info", "_transport", "_pongs", "_pings_outstanding", "_reading_task")
    assert all(hasattr(Client(), name) for name in (*fields, "_ping_interval_task", "_flusher_task", "_status"))
    assert all(hasattr(TcpTransport(), name) for name in ("_io_reader", "_io_writer"))


def block(status: str, pending: int | None = None) -> bytes:
    field = "" if pending is None else f"Nats-Pending-Messages: {pending}\r\nNats-Pending-Bytes: 0\r\n"
    return f"NATS/1.0 {status}\r\n{field}\r\n".encode()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("100 Idle Heartbeat", Said.ALIVE),
        ("404 No Messages", Said.ENDED),
        ("408 Request Timeout", Said.ENDED),
        ("409 Message Size Exceeds MaxBytes", Said.ENDED),
        ("409 Exceeded MaxRequestMaxBytes of 500", Said.SUSPECT),
        ("409 Batch Completed", Said.ENDED),
        ("409 Consumer Deleted", Said.SUSPECT),
        ("409 Leadership Change", Said.SUSPECT),
        ("409 Server Shutdown", Said.SUSPECT),
        ("409 Exceeded MaxWaiting", Said.SUSPECT),
        ("400 Bad Request", Said.SUSPECT),
        ("503", Said.SUSPECT),
    ],
)
def test_statuses_are_told_apart(status: str, said: Said) -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    pulls.question(100, 1 << 20)
    pulls.arrived(time.monotonic())
    pulls.outstanding = 100
    assert pulls.status(block(status)) is said
    assert pulls.outstanding == (100 if said is Said.ALIVE else 0)
    # What nobody took is not asked for again at once: that would be a hot loop.
    assert pulls.wanted(100) == (100 if said is Said.ENDED else 0)


def test_what_no_request_has_room_for_is_asked_for_alone_and_without_a_hot_loop() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {"max_bytes": 500})
    full = block("409 Message Size Exceeds MaxBytes", 100)
    pulls.question(100, 1 << 20)
    assert pulls.status(full) is Said.LARGE
    assert pulls.wanted(100) == 1
    assert b"max_bytes" not in pulls.question(1, 1 << 20)
    # A server that refuses this one too is asked again after a while.
    assert pulls.status(block("409 Message Size Exceeds MaxBytes", 1)) is Said.ENDED
    assert pulls.wanted(100) == 0
    assert 0 < pulls.patience(time.monotonic()) < 1


def test_room_that_was_used_up_by_what_came_makes_no_message_large() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    pulls.question(100, 1 << 20)
    pulls.arrived(time.monotonic())
    assert pulls.status(block("409 Message Size Exceeds MaxBytes", 99)) is Said.ENDED
    assert b'"max_bytes":1048576' in pulls.question(100, 1 << 20)


def test_a_second_refusal_is_told_until_one_request_is_taken() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    for times, refusal in ((1, ""), (2, "503"), (3, "503")):
        pulls.question(100, 1 << 20)
        assert pulls.status(block("503")) is Said.SUSPECT
        assert (pulls.refused, pulls.refusal) == (times, refusal)
        assert not pulls.recovered
    assert pulls.status(block("100 Idle Heartbeat")) is Said.ALIVE
    assert pulls.recovered
    assert not pulls.recovered, "it is told once"


@pytest.mark.parametrize("block_", [b"", b"x", b"NATS/1.0\r\n\r\n", b"NATS/1.0 %b\r\n\r\n" % (b"9" * 5000)])
def test_what_is_no_status_changes_nothing(block_: bytes) -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    pulls.question(100, 1 << 20)
    assert pulls.status(block_) is Said.NOTHING
    assert pulls.outstanding == 100
    huge = b"NATS/1.0 408 x\r\nNats-Pending-Messages: %b\r\n\r\n" % (b"9" * 5000)
    assert pulls.status(huge) is Said.ENDED


def test_limits_that_change_are_kept() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {"max_batch": 7})
    pulls.limit({"max_batch": 3, "max_expires": 6_000_000_000})
    assert pulls.wanted(100) == 3
    assert b'"expires":6000000000,"idle_heartbeat":1500000000' in pulls.question(3, 1)
    pulls.limit({})
    pulls.forget()
    assert pulls.wanted(100) == 100


def test_a_status_ends_its_own_request_and_no_other() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    pulls.question(50, 1 << 20)
    pulls.question(50, 1 << 20)
    pulls.status(block("408 Request Timeout", 30))
    assert pulls.outstanding == 70


def test_requests_are_large_or_needed() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {})
    assert pulls.wanted(0) == 0
    assert pulls.wanted(1) == 1  # nothing is on its way
    pulls.question(90, 1 << 20)
    assert pulls.wanted(100) == 0  # not worth a request
    assert pulls.wanted(160) == 70


def test_a_consumers_own_limits_are_kept() -> None:
    pulls = Pulls(Window(100, 1 << 20), 30.0, {"max_batch": 7, "max_expires": 2_000_000_000, "max_bytes": 500})
    assert pulls.wanted(100) == 7
    assert pulls.question(7, 1 << 20) == (
        b'{"batch":7,"expires":2000000000,"idle_heartbeat":666666666,"max_bytes":500}'
    )

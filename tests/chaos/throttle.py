"""A DynamoDB or an SQS whose capacity is used up: a proxy that hands everything on, and while it throttles answers every write as
the service does. No emulator at hand has a capacity that could be used up.

The answers are what the AWS documentation gives (Amazon DynamoDB Developer Guide, *Error handling with DynamoDB*; Amazon SQS API
Reference, *SendMessage*): status 400, and a JSON body whose ``__type`` ends in the name of the error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """How a service refuses a write.

    Attributes:
        writes: the operations that are writes.
        kind: the error's full name.
        words: what it says.
    """

    writes: tuple[str, ...]
    kind: str
    words: str


DYNAMODB = Refusal(
    ("PutItem", "UpdateItem"),
    "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
    "The level of configured provisioned throughput for the table was exceeded. Consider increasing your provisioning level "
    "with the UpdateTable API.",
)
SQS = Refusal(
    ("SendMessage", "SendMessageBatch"),
    "com.amazonaws.sqs#RequestThrottled",
    "The request was denied due to request throttling.",
)
_SECONDS = 30.0
_HOPS = {"connection", "content-length", "transfer-encoding", "date", "server"}


class Throttle:
    """Listens at ``address``.

    Attributes:
        refused: how many writes it has refused.
    """

    def __init__(self, upstream: str, refusal: Refusal) -> None:
        self.refused = 0
        self._refusal = refusal
        self._upstream = upstream
        self._on = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def fill(self) -> None:
        """No write has room any more."""
        self._on = True

    def free(self) -> None:
        """Every write has."""
        self._on = False

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        throttle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _SECONDS

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - as it is called there
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
                refusal = throttle._refusal
                if throttle._on and operation in refusal.writes:
                    throttle.refused += 1
                    text = json.dumps({"__type": refusal.kind, "message": refusal.words}).encode()
                    self._answer(400, [("Content-Type", "application/x-amz-json-1.0")], text)
                else:
                    self._hand_on(body)

            def _hand_on(self, body: bytes) -> None:
                with contextlib.closing(http.client.HTTPConnection(throttle._upstream, timeout=_SECONDS)) as upstream:
                    given = {name: value for name, value in self.headers.items() if name.lower() not in _HOPS}
                    upstream.request("POST", self.path, body, given)
                    found = upstream.getresponse()
                    self._answer(found.status, found.getheaders(), found.read())

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)  # with a Date, from which the store has its clock
                for name, value in headers:
                    if name.lower() not in _HOPS:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


@contextlib.contextmanager
def throttled(upstream: str, refusal: Refusal = DYNAMODB) -> Iterator[Throttle]:
    """A proxy to ``upstream``, ``host:port``, for the block."""
    made = Throttle(upstream, refusal)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join(_SECONDS)

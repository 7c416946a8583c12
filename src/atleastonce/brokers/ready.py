"""Whether a broker serves: one real call in each protocol, spoken by hand, so that no client library is needed.

Every function connects, asks, and returns the version that the broker names (`None` where it names none). They raise
`NotReady` when the answer is not the expected one and `OSError` when there is none.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

from .model import NotReady

SECONDS = 5.0
"""How long one call may take. Too small and a busy machine looks dead; too large and a hung broker costs a start."""


class Wire:
    """A connection with exact reads."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=SECONDS)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise NotReady("the connection was closed in the middle of an answer")
            data += chunk
        return bytes(data)

    def line(self) -> str:
        data = bytearray()
        while not data.endswith(b"\r\n"):
            data += self.exactly(1)
        return data[:-2].decode(errors="replace")


def kafka(host: str, port: int, url: str) -> str | None:
    """ApiVersions (v0), then Metadata (v1) without topics: served once at least one broker has joined its cluster.

    The protocol names no release.
    """
    del url
    with Wire(host, port) as wire:
        client = b"atleastonce"
        for correlation, (api, version, body) in enumerate([(18, 0, b""), (3, 1, struct.pack(">i", 0))]):
            head = struct.pack(">hhih", api, version, correlation, len(client)) + client
            wire.send(struct.pack(">i", len(head + body)) + head + body)
            answer = wire.exactly(struct.unpack(">i", wire.exactly(4))[0])
            if struct.unpack_from(">i", answer)[0] != correlation:
                raise NotReady("an answer to another request")
            if api == 18 and struct.unpack_from(">h", answer, 4)[0] != 0:
                raise NotReady("ApiVersions was refused")
            if api == 3 and struct.unpack_from(">i", answer, 4)[0] < 1:
                raise NotReady("no broker has joined the cluster yet")
    return None


def rabbitmq(host: str, port: int, url: str) -> str | None:
    """AMQP 0-9-1 as far as `connection.tune`, which comes after the password was accepted."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    with Wire(host, port) as wire:
        wire.send(b"AMQP\x00\x00\x09\x01")
        start = _amqp_method(wire, 10)
        version = _amqp_version(start)
        response = f"\0{user}\0{password}".encode()
        body = struct.pack(">HH", 10, 11) + struct.pack(">I", 0) + b"\x05PLAIN"
        body += struct.pack(">I", len(response)) + response + b"\x05en_US"
        wire.send(struct.pack(">BHI", 1, 0, len(body)) + body + b"\xce")
        _amqp_method(wire, 30)
    return version


def _amqp_method(wire: Wire, expected: int) -> bytes:
    kind, _, size = struct.unpack(">BHI", wire.exactly(7))
    frame = wire.exactly(size + 1)[:-1]
    if kind != 1 or struct.unpack_from(">HH", frame) != (10, expected):
        raise NotReady("the server does not speak AMQP 0-9-1, or refused the password")
    return frame


def _amqp_version(start: bytes) -> str | None:
    """server-properties is a field table; the value of its string field `version`."""
    at = start.find(b"\x07versionS")
    if at < 0:
        return None
    size = struct.unpack_from(">I", start, at + 9)[0]
    return start[at + 13 : at + 13 + size].decode(errors="replace")


def nats(host: str, port: int, url: str) -> str | None:
    """INFO, CONNECT, PING, PONG."""
    parts = urlsplit(url)
    options: dict[str, object] = {"verbose": False, "pedantic": False, "lang": "python", "version": "0"}
    if parts.username and parts.password:
        options |= {"user": unquote(parts.username), "pass": unquote(parts.password)}
    elif parts.username:
        options["auth_token"] = unquote(parts.username)
    with Wire(host, port) as wire:
        greeting = wire.line()
        if not greeting.startswith("INFO "):
            raise NotReady("the server does not speak NATS")
        info = json.loads(greeting[5:])
        wire.send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        answer = wire.line()
        if answer != "PONG":
            raise NotReady(f"PING was answered by {answer}")
    return str(info["version"]) if "version" in info else None


def redis(host: str, port: int, url: str) -> str | None:
    """AUTH where the URL has a password, PING, INFO server."""
    parts = urlsplit(url)
    with Wire(host, port) as wire:
        if parts.password:
            words = ["AUTH", *([unquote(parts.username)] if parts.username else []), unquote(parts.password)]
            _redis_call(wire, *words)
        if _redis_call(wire, "PING") != "PONG":
            raise NotReady("PING was not answered by PONG")
        info = dict(row.partition(":")[::2] for row in _redis_call(wire, "INFO", "server").splitlines())
    # Valkey names itself beside the version of Redis that it stands for.
    return f"Valkey {valkey}" if (valkey := info.get("valkey_version")) else info.get("redis_version")


def _redis_call(wire: Wire, *words: str) -> str:
    parts = [f"*{len(words)}\r\n".encode()]
    parts += [b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words]
    wire.send(b"".join(parts))
    answer = wire.line()
    if answer.startswith("$"):
        return wire.exactly(int(answer[1:]) + 2)[:-2].decode(errors="replace")
    if not answer.startswith("+"):  # -LOADING while it reads its file
        raise NotReady(answer)
    return answer[1:]


def postgres(host: str, port: int, url: str) -> str | None:
    """The start-up exchange. A server that asks for more than a plain password has shown that it serves; the client
    library will authenticate, and the version stays unknown."""
    parts = urlsplit(url)
    user, database = unquote(parts.username or "postgres"), parts.path.lstrip("/") or "postgres"
    body = struct.pack(">I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    version = None
    with Wire(host, port) as wire:
        wire.send(struct.pack(">I", len(body) + 4) + body)
        while True:
            kind, size = struct.unpack(">cI", wire.exactly(5))
            content = wire.exactly(size - 4)
            if kind == b"E":
                fields = [field[1:].decode(errors="replace") for field in content.split(b"\0") if field]
                raise NotReady(fields[3] if len(fields) > 3 else "refused")
            if kind == b"R":
                method = struct.unpack_from(">I", content)[0]
                if method == 3 and parts.password is not None:
                    word = unquote(parts.password).encode() + b"\0"
                    wire.send(b"p" + struct.pack(">I", len(word) + 4) + word)
                elif method not in (0, 3):
                    return None
            elif kind == b"S":
                key, _, value = content.rstrip(b"\0").partition(b"\0")
                if key == b"server_version":
                    version = value.decode()
            elif kind == b"Z":
                wire.send(b"X\0\0\0\4")
                return version


def mysql(host: str, port: int, url: str) -> str | None:
    """The greeting, which names the version, and an answer to a login: a refusal too shows that it serves, except where
    it has as many connections as it takes."""
    user = unquote(urlsplit(url).username or "root").encode()
    with Wire(host, port) as wire:
        greeting = _mysql_packet(wire)
        if greeting[:1] != b"\x0a":
            raise NotReady(_mysql_refusal(greeting) or "the server does not speak MySQL's protocol")
        version = greeting[1:].partition(b"\0")[0].decode(errors="replace")
        # Protocol 4.1, secure connection, plugin names; no password: whoever has one is asked to change the method.
        body = struct.pack("<IIB23x", 0x0200 | 0x8000 | 0x80000, 1 << 24, 45) + user + b"\0\0mysql_native_password\0"
        wire.send(len(body).to_bytes(3, "little") + b"\x01" + body)
        refusal = _mysql_refusal(_mysql_packet(wire))
        if refusal and not refusal.startswith("1045 "):
            raise NotReady(refusal)
    # MariaDB puts a version that old clients of MySQL understand before its own.
    return version.removeprefix("5.5.5-")


def _mysql_packet(wire: Wire) -> bytes:
    return wire.exactly(int.from_bytes(wire.exactly(4)[:3], "little"))


def _mysql_refusal(packet: bytes) -> str | None:
    if packet[:1] != b"\xff":
        return None
    return f"{int.from_bytes(packet[1:3], 'little')} {packet[3:].decode(errors='replace')}"


def http(
    url: str, *, data: bytes | None = None, headers: dict[str, str] | None = None, auth: tuple[str, str] | None = None
) -> bytes:
    """The body of a 2xx answer over HTTP, without proxies: these servers are local."""
    request = urllib.request.Request(url, data=data, headers=headers or {})  # noqa: S310  # http only, ours
    if auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(auth).encode()).decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise NotReady(f"HTTP {error.code} from {urlsplit(url).path}") from error
    except urllib.error.URLError as error:
        raise NotReady(str(error.reason)) from error


def pubsub(host: str, port: int, url: str) -> str | None:
    """gRPC: the HTTP/2 preface and SETTINGS, then `Publisher.ListTopics` of a project, answered by a status of 0. Of the
    service itself (a URL without port and path, or at googleapis.com) only that it speaks TLS: its calls need credentials."""
    parts = urlsplit(url)
    if host.endswith(".googleapis.com") or (parts.port is None and not parts.path.strip("/")):
        service = host if host.endswith(".googleapis.com") else "pubsub.googleapis.com"
        with socket.create_connection((service, 443), timeout=SECONDS) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname=service).close()
        return None
    request = b"\x0a" + _short("projects/atleastonce-ready")  # ListTopicsRequest.project = 1
    path = "/google.pubsub.v1.Publisher/ListTopics"
    # HPACK: `:method: POST` and `:scheme: http` by index, the rest as literals that enter no table.
    block = b"\x83\x86" + b"\x04" + _short(path) + b"\x01" + _short(f"{host}:{port}")
    block += b"\x00" + _short("content-type") + _short("application/grpc") + b"\x00" + _short("te") + _short("trailers")
    with Wire(host, port) as wire:
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _h2(4, 0, 0, b""))
        wire.send(_h2(1, 4, 1, block) + _h2(0, 1, 1, b"\0" + struct.pack(">I", len(request)) + request))
        data = False
        while True:
            head = wire.exactly(9)
            kind, flags = head[3], head[4]
            stream = struct.unpack(">I", head[5:])[0] & 0x7FFFFFFF
            body = wire.exactly(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:
                wire.send(_h2(4, 1, 0, b""))
            elif kind in (3, 7):
                raise NotReady("the call was reset")
            elif kind == 0 and stream == 1:
                data = data or len(body) >= 5
            # A refused call ends with its first header block: only a message before the end is a yes.
            if stream == 1 and flags & 1 and kind in (0, 1):
                if not data:
                    raise NotReady("ListTopics was refused")
                return None


def _short(text: str) -> bytes:
    """A string below 127 bytes, with its length before it: the same in HPACK and in Protobuf."""
    return bytes([len(text)]) + text.encode()


def _h2(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body

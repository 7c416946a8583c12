"""Calls past the client: what comes instead where the client lacks the parts, and what is made of strange answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("boto3", reason="boto3 is not installed")

from botocore.exceptions import ClientError
from botocore.hooks import HierarchicalEmitter
from botocore.parsers import ResponseParserError

from atleastonce.adapters.sqs.direct import Direct


class Answering:
    """A client, or as much of one as is used; its connections answer ``content``."""

    def __init__(self, content: bytes = b"{}", status: int = 200) -> None:
        self.plain: list[dict[str, Any]] = []
        self.requests: list[Any] = []
        self.meta = SimpleNamespace(events=HierarchicalEmitter())
        self.exceptions = SimpleNamespace(from_code=lambda _: ClientError)
        self._answer = SimpleNamespace(status_code=status, content=content, headers={})
        self._request_signer = SimpleNamespace(sign=lambda *_: None)
        self._endpoint = SimpleNamespace(http_session=SimpleNamespace(send=self._send))

    def _send(self, request: Any) -> Any:
        self.requests.append(request)
        return self._answer

    def receive_message(self, **asked: Any) -> dict[str, Any]:
        self.plain.append(asked)
        return {"Messages": []}

    def ask(self, url: str = "https://sqs.eu-west-1.amazonaws.com/") -> None:
        request = SimpleNamespace(url=url, headers={"User-Agent": b"Boto3/1 atleastonce"})
        self.meta.events.emit("before-send.sqs.ListQueues", request=request)


def test_before_the_clients_own_first_request_the_client_is_asked() -> None:
    client = Answering()
    direct = Direct(client)
    assert direct("ReceiveMessage", QueueUrl="u") == {"Messages": []}
    assert client.plain == [{"QueueUrl": "u"}]
    client.ask()
    assert direct("ReceiveMessage", QueueUrl="u") == {}
    assert client.requests[0].url == "https://sqs.eu-west-1.amazonaws.com/"
    assert client.requests[0].headers["User-Agent"] == "Boto3/1 atleastonce"


@pytest.mark.parametrize("part", ["_request_signer", "_endpoint"])
def test_a_client_with_other_parts_is_asked_itself(part: str) -> None:
    client = Answering()
    delattr(client, part)
    direct = Direct(client)
    client.ask()
    assert not direct.ready
    direct("ReceiveMessage", QueueUrl="u")
    assert client.plain == [{"QueueUrl": "u"}]


def test_bytes_are_base64_on_the_wire() -> None:
    client = Answering(
        b'{"Messages":[{"Body":"x","MessageAttributes":{"b":{"DataType":"Binary","BinaryValue":"/wA="}}}]}'
    )
    direct = Direct(client)
    client.ask()
    found = direct("ReceiveMessage", QueueUrl="u")
    assert found["Messages"][0]["MessageAttributes"]["b"]["BinaryValue"] == b"\xff\x00"
    direct("SendMessageBatch", Entries=[{"MessageAttributes": {"b": {"BinaryValue": b"\xff\x00"}}}])
    assert b'"/wA="' in client.requests[1].body


def test_half_a_surrogate_pair_in_a_foreign_body_is_read() -> None:
    client = Answering(b'{"Messages":[{"Body":"\\ud800"}]}')
    direct = Direct(client)
    client.ask()
    assert direct("ReceiveMessage")["Messages"][0]["Body"] == "\ud800"


def test_what_is_no_answer_of_sqs_is_an_error() -> None:
    client = Answering(b"<html>a proxy</html>")
    direct = Direct(client)
    client.ask()
    with pytest.raises(ResponseParserError, match="no JSON"):
        direct("ReceiveMessage")
    client = Answering(b"<html>bad gateway</html>", 502)
    direct = Direct(client)
    client.ask()
    with pytest.raises(ClientError):
        direct("ReceiveMessage")

"""The calls that every message takes part in, with the client's credentials, signature and connections, and without the rest.

Of the time that boto3 takes for ten messages, half goes into walking through requests and answers field by field, along the
service's description. SQS speaks JSON: a decoder in C does the same in a twentieth.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec

_TARGET: Final = "AmazonSQS."
_HEADERS: Final = {
    "Content-Type": "application/x-amz-json-1.0",
    "x-amzn-query-mode": "true",  # errors by the names that they always had
}
_encode = msgspec.json.encode  # bytes become base64, as the service wants them
_decode = msgspec.json.Decoder().decode


class Direct:
    """Calls through ``client``, made by boto3 for SQS. Any thread may use it.

    Where and as whom to ask is taken from the client's own first request. Until there was one, and with a client that has other
    parts than are known here, calls go through the client itself.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._url = ""
        self._headers: dict[str, str] = {}
        self._signer = getattr(client, "_request_signer", None)
        self._http = getattr(getattr(client, "_endpoint", None), "http_session", None)
        client.meta.events.register_last("before-send.sqs.*", self._seen)

    @property
    def ready(self) -> bool:
        """Whether calls go past the client."""
        return bool(self._url)

    def _seen(self, request: Any, **_: Any) -> None:
        """Look at a request of the client's. Returns None: it is to be sent as it is."""
        if self._url or not hasattr(self._signer, "sign") or not hasattr(self._http, "send"):
            return
        agent = request.headers.get("User-Agent", "")
        text: str = agent.decode() if isinstance(agent, bytes) else agent
        self._headers = {**_HEADERS, "User-Agent": text}
        self._url = request.url

    def __call__(self, operation: str, **asked: Any) -> dict[str, Any]:
        """``operation`` by the service's name, such as ``SendMessageBatch``, and its answer. Raises the client's errors."""
        from botocore.awsrequest import AWSRequest

        if not self._url or self._signer is None or self._http is None:
            return self._plainly(operation, asked)
        headers = {**self._headers, "X-Amz-Target": _TARGET + operation}
        request = AWSRequest(method="POST", url=self._url, headers=headers, data=_encode(asked))
        self._signer.sign(operation, request)
        answer = self._http.send(request.prepare())
        content: bytes = answer.content
        if answer.status_code >= 300:
            raise self._error(operation, answer)
        if not content:
            return {}
        found = _read(content)
        if operation == "ReceiveMessage" and b'"BinaryValue"' in content:
            for message in found.get("Messages", ()):
                for attribute in message.get("MessageAttributes", {}).values():
                    if "BinaryValue" in attribute:
                        attribute["BinaryValue"] = base64.b64decode(attribute["BinaryValue"])
        return found

    def _plainly(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        from botocore import xform_name

        answer: dict[str, Any] = getattr(self._client, xform_name(operation))(**asked)
        return answer

    def _error(self, operation: str, answer: Any) -> Exception:
        from botocore.parsers import create_parser

        parsed = create_parser("json").parse(
            {
                "body": answer.content,
                "headers": answer.headers,
                "status_code": answer.status_code,
                "context": {"operation_name": operation},
            },
            None,
        )
        error: Exception = self._client.exceptions.from_code(parsed.get("Error", {}).get("Code"))(parsed, operation)
        return error


def _read(content: bytes) -> dict[str, Any]:
    try:
        found: Any = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            found = json.loads(content)  # it lets halves of surrogate pairs pass, which a foreign body may have
        except ValueError as error:
            from botocore.parsers import ResponseParserError

            raise ResponseParserError(f"no JSON: {content[:100]!r}") from error
    return found if isinstance(found, dict) else {}

"""Payload types to bytes and back. JSON through msgspec by default; ``bytes`` pass untouched.

What a payload decodes to is decided by the handler's annotation or the channel's type, in code: nothing on the wire
chooses a class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from atleastonce.codecs.json import json_decoder, json_encode
from atleastonce.errors import ConfigurationError

Decoder: TypeAlias = Callable[[bytes], Any]

JSON = "application/json"
OCTETS = "application/octet-stream"

_BYTES = (bytes, bytearray, memoryview)  # a union would be made anew for each payload


def decoder_for(payload_type: Any) -> Decoder:
    """The function that turns a body into ``payload_type``; it raises `DecodeError` and nothing else.

    Raises:
        ConfigurationError: no codec can decode to this type.
    """
    if payload_type is bytes:
        return _identity
    return json_decoder(payload_type)


def encode(payload: Any) -> tuple[bytes, str]:
    """``payload`` as bytes, and their content type.

    Raises:
        EncodeError: it cannot be encoded; nothing was sent.
    """
    if isinstance(payload, _BYTES):
        return bytes(payload), OCTETS
    return json_encode(payload), JSON


def _identity(body: bytes) -> bytes:
    return body


__all__ = ["JSON", "OCTETS", "ConfigurationError", "Decoder", "decoder_for", "encode"]

"""JSON: msgspec Structs, dataclasses, TypedDicts, dicts, attrs classes, and pydantic models where pydantic is
installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from atleastonce.errors import ConfigurationError, DecodeError, EncodeError


def _pydantic(payload_type: Any) -> bool:
    # Asked without importing pydantic: a type can only be its model if somebody imported it already.
    module = sys.modules.get("pydantic")
    return module is not None and isinstance(payload_type, type) and issubclass(payload_type, module.BaseModel)


def json_decoder(payload_type: Any) -> Callable[[bytes], Any]:
    """A function from bytes to ``payload_type`` that raises `DecodeError` and nothing else.

    Raises:
        ConfigurationError: msgspec and pydantic do not know the type.
    """
    if _pydantic(payload_type):
        return _guarded(payload_type.model_validate_json, ValueError, RecursionError)
    try:
        decoder = msgspec.json.Decoder(payload_type)
    except TypeError as error:
        raise ConfigurationError(f"{payload_type!r} is no payload type: {error}") from None
    return _guarded(decoder.decode, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _guarded(decode: Callable[[bytes], Any], *failures: type[Exception]) -> Callable[[bytes], Any]:
    def guarded(body: bytes) -> Any:
        try:
            return decode(body)
        except failures as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from error

    return guarded


def json_encode(payload: Any) -> bytes:
    """``payload`` as JSON.

    Raises:
        EncodeError: names the type that has no JSON form.
    """
    try:
        if _pydantic(type(payload)):
            encoded: str = payload.model_dump_json()
            return encoded.encode()
        return msgspec.json.encode(payload)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise EncodeError(f"a {type(payload).__name__} does not encode to JSON: {error}") from error

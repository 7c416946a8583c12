"""What a payload type's JSON looks like, as JSON Schema."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from atleastonce.codecs import JSON, OCTETS


def json_schemas(types: Sequence[Any], place: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A schema for each of ``types``, and what they refer to at ``place`` (``#/components/schemas/``), by name. What no library
    can tell is ``{}``: anything.
    """
    ours = [one for one in dict.fromkeys(types) if one is not bytes and _is_known(one)]
    # Together: of two classes with one name each gets its full name then.
    schemas, named = msgspec.json.schema_components(ours, ref_template=place + "{name}")
    told = dict(zip(ours, schemas, strict=True))
    found: list[dict[str, Any]] = []
    for one in types:
        if one is bytes:
            found.append({"type": "string", "format": "binary"})
        elif one in told:
            found.append(told[one])
        else:
            schema, parts = _of_pydantic(one, place, named)
            named |= parts
            found.append(schema)
    return found, named


def content_type(payload_type: Any) -> str:
    """With which it is published."""
    return OCTETS if payload_type is bytes else JSON


def _is_known(payload_type: Any) -> bool:
    try:
        msgspec.json.schema_components([payload_type])
    except Exception:  # noqa: BLE001 - a type that msgspec does not know; a model of pydantic's, perhaps
        return False
    return True


def _of_pydantic(payload_type: Any, place: str, taken: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    module: Any = sys.modules.get("pydantic")
    if module is None:
        return {}, {}
    prefix = ""
    while True:
        try:
            schema: dict[str, Any] = module.TypeAdapter(payload_type).json_schema(
                ref_template=f"{place}{prefix}{{model}}"
            )
        except Exception:  # noqa: BLE001 - a schema is a service to readers, and no reason to stop
            return {}, {}
        parts: dict[str, Any] = {prefix + name: part for name, part in schema.pop("$defs", {}).items()}
        name = getattr(payload_type, "__name__", "")
        if schema.get("type") == "object" and name.isidentifier():
            parts[prefix + name], schema = schema, {"$ref": f"{place}{prefix}{name}"}
        if all(taken.get(name, part) == part for name, part in parts.items()):
            return schema, parts
        prefix += "pydantic."  # somebody else's class has the name

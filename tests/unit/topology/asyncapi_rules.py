"""The part of AsyncAPI 3.0.0 that our documents use: fields of each object, and references that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

KEY = re.compile(r"[A-Za-z0-9_.-]+")

# Required fields, and those that may be there.
OBJECTS: Mapping[str, tuple[set[str], set[str]]] = {
    "root": ({"asyncapi", "info"}, {"id", "servers", "defaultContentType", "channels", "operations", "components"}),
    "info": (
        {"title", "version"},
        {"description", "termsOfService", "contact", "license", "tags", "externalDocs"},
    ),
    "server": (
        {"host", "protocol"},
        {"pathname", "protocolVersion", "title", "summary", "description", "variables", "security", "tags", "bindings"},
    ),
    "channel": (
        set(),
        {"address", "messages", "title", "summary", "description", "servers", "parameters", "tags", "bindings"},
    ),
    "operation": (
        {"action", "channel"},
        {"title", "summary", "description", "security", "tags", "bindings", "traits", "messages", "reply"},
    ),
    "message": (
        set(),
        {"headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags"}
        | {"bindings", "examples", "traits"},
    ),
    "reply": (set(), {"address", "channel", "messages"}),
    "components": (set(), {"schemas", "servers", "channels", "operations", "messages", "replies", "replyAddresses"}),
}
BINDINGS: Mapping[str, tuple[str, set[str]]] = {
    "channel.kafka": ("0.5.0", {"topic", "partitions", "replicas", "topicConfiguration"}),
    "operation.kafka": ("0.5.0", {"groupId", "clientId"}),
    "channel.amqp": ("0.3.0", {"is", "exchange", "queue"}),
}
AMQP = {
    "exchange": {"name", "type", "durable", "autoDelete", "vhost"},
    "queue": {"name", "durable", "exclusive", "autoDelete", "vhost"},
}


def violations(document: Mapping[str, Any]) -> list[str]:
    """What a validator would refuse; empty: nothing."""
    found = list(_fields("root", "document", document)) + list(_fields("info", "info", document["info"]))
    if document["asyncapi"] != "3.0.0":
        found.append("asyncapi is not 3.0.0")
    for kind in ("server", "channel", "operation"):
        for key, value in document.get(f"{kind}s", {}).items():
            found += [] if KEY.fullmatch(key) else [f"{kind} {key}: no key"]
            found += _fields(kind, f"{kind} {key}", value)
            found += _bindings(kind, f"{kind} {key}", value.get("bindings", {}))
    for key, value in document["operations"].items():
        found += [] if value["action"] in ("send", "receive") else [f"operation {key}: action {value['action']}"]
        found += _fields("reply", f"operation {key}.reply", value.get("reply", {}))
        prefix = f"{value['channel']['$ref']}/messages/"
        found += [f"operation {key}: {m} is of another channel" for m in value["messages"] if prefix not in m["$ref"]]
    found += _fields("components", "components", document["components"])
    for key, value in document["components"].get("messages", {}).items():
        found += _fields("message", f"message {key}", value)
    found += [f"{where}: nothing there" for where in _references(document) if _find(document, where) is None]
    return found


def _fields(kind: str, where: str, value: Mapping[str, Any]) -> Iterator[str]:
    needed, allowed = OBJECTS[kind]
    yield from (f"{where}: {name} is missing" for name in needed - set(value))
    yield from (f"{where}: no field {name}" for name in set(value) - needed - allowed)


def _bindings(kind: str, where: str, bindings: Mapping[str, Any]) -> Iterator[str]:
    for protocol, value in bindings.items():
        version, allowed = BINDINGS[f"{kind}.{protocol}"]
        if value["bindingVersion"] != version:
            yield f"{where}: version of the {protocol} binding"
        yield from (f"{where}: {protocol} has no {name}" for name in set(value) - allowed - {"bindingVersion"})
        for part in AMQP.keys() & set(value):
            yield from (f"{where}: {part} has no {name}" for name in set(value[part]) - AMQP[part])


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _find(document: Any, reference: str) -> Any:
    at = document
    for part in reference.removeprefix("#/").split("/"):
        at = at.get(part) if isinstance(at, Mapping) else None
    return at

"""AsyncAPI 3.0: what a service receives, from where and in which shape, for readers and generators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.codecs.schemas import content_type, json_schemas
from atleastonce.consumer import Consumer
from atleastonce.topology.declared import Declared
from atleastonce.topology.export import Export

_PROTOCOLS: Final = {
    "kafka": ("kafka", "kafka-secure"),
    "rabbitmq": ("amqp", "amqps"),
    "sqs": ("sqs", "sqs"),
    "nats": ("nats", "nats"),
    "pubsub": ("googlepubsub", "googlepubsub"),
    "redis": ("redis", "redis"),
}
_HEADERS: Final = {
    "type": "object",
    "properties": {
        wire.ID: {
            "type": "string",
            "description": "The message's identity, kept across retries; repeat it to publish again.",
        },
        wire.CONTENT_TYPE: {"type": "string"},
    },
}


def asyncapi(declared: Declared, version: str) -> Export:
    """The service as an AsyncAPI document: a channel and a ``receive`` operation for each handler, a channel for its dead letters.

    Args:
        declared: of the service.
        version: of the service's interface.
    """
    schemas, named = json_schemas([each.binding.payload_type for each in declared.consumers], "#/components/schemas/")
    servers = _servers(declared)
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for consumer, schema in zip(declared.consumers, schemas, strict=True):
        channel = _id(consumer.home.channel.name)
        message = _unique(messages, _message_name(consumer), consumer, schema)
        channels.setdefault(channel, _channel(declared, consumer.home, servers))
        channels[channel]["messages"][message] = {"$ref": f"#/components/messages/{message}"}
        operations[_id(f"{consumer.home.name}.receive")] = _operation(declared, consumer, channel, message)
        if consumer.dead_letter:
            dead = Source(consumer.home.dead_letter_channel)
            channels[_id(dead.name)] = {
                **_channel(declared, dead, servers),
                "description": f"What {consumer.home} gave up, with the reasons in its headers, until a person decides.",
                "messages": {message: {"$ref": f"#/components/messages/{message}"}},
            }
            operations[_id(f"{dead.name}.send")] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{_id(dead.name)}"},
                "messages": [{"$ref": f"#/channels/{_id(dead.name)}/messages/{message}"}],
                "summary": f"Messages that {consumer.binding.name} could not handle.",
            }
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": declared.service, "version": version},
        "defaultContentType": "application/json",
    }
    if servers:
        document["servers"] = servers
    document |= {"channels": channels, "operations": operations}
    document["components"] = {"messages": messages, "schemas": named}
    return Export(document)


def _servers(declared: Declared) -> dict[str, Any]:
    """Where the broker is; nothing for one that is part of the process."""
    if declared.broker not in _PROTOCOLS:
        return {}
    server = declared.server
    plain, secure = _PROTOCOLS[declared.broker]
    tls = bool(server.get("tls")) or "SSL" in str(server.get("security", "")).replace("SASL", "")
    hosts = server.get("servers") or [_host(declared)]
    found: dict[str, Any] = {}
    for number, host in enumerate(hosts, 1):
        one: dict[str, Any] = {"host": host, "protocol": secure if tls else plain}
        if declared.broker == "rabbitmq":
            one["pathname"] = f"/{server['virtual_host'].removeprefix('/')}"
        found["broker" if len(hosts) == 1 else f"broker{number}"] = one
    return found


def _host(declared: Declared) -> str:
    endpoint = str(
        declared.server.get("endpoint") or f"sqs.{declared.server.get('region') or '{region}'}.amazonaws.com"
    )
    return endpoint.partition("://")[2] or endpoint


def _channel(declared: Declared, source: Source, servers: Mapping[str, Any]) -> dict[str, Any]:
    channel = source.channel
    found: dict[str, Any] = {"address": declared.addresses[channel.name], "messages": {}}
    if "{part}" in found["address"]:
        numbers = [str(number) for number in range(channel.partitions or 0)]
        text = "CRC-32 of the message's key, modulo their number."
        found["parameters"] = {"part": {"enum": numbers, "description": text}}
    if servers:
        found["servers"] = [{"$ref": f"#/servers/{name}"} for name in servers]
    if bindings := _bindings(declared, channel.name):
        found["bindings"] = bindings
    return found


def _bindings(declared: Declared, name: str) -> dict[str, Any]:
    """What the broker has for a channel, where AsyncAPI has words for it."""
    for each in declared.resources:
        if each.name != name:
            continue
        if declared.broker == "kafka":
            partitions = each.settings["partitions"]
            return {"kafka": {"topic": name, "partitions": partitions, "bindingVersion": "0.5.0"}}
        if declared.broker == "rabbitmq":
            host = declared.server["virtual_host"]
            shape = {"name": name, "durable": True, "autoDelete": False, "vhost": host}
            if each.kind == "exchange":
                return {
                    "amqp": {"is": "routingKey", "exchange": {**shape, "type": "fanout"}, "bindingVersion": "0.3.0"}
                }
            if each.kind == "queue":
                return {"amqp": {"is": "queue", "queue": {**shape, "exclusive": False}, "bindingVersion": "0.3.0"}}
    return {}


def _operation(declared: Declared, consumer: Consumer, channel: str, message: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "title": consumer.binding.name,
    }
    text = (consumer.binding.call.__doc__ or "").strip()
    if text:
        found["summary"] = text.splitlines()[0]
    if declared.broker == "kafka":
        group = {"type": "string", "enum": [consumer.home.group_name]}
        found["bindings"] = {"kafka": {"groupId": group, "bindingVersion": "0.5.0"}}
    if consumer.answering is not None:
        # NATS has a place of its own for the address, which AsyncAPI has no words for.
        header = {"address": {"location": f"$message.header#/{wire.REPLY_TO}"}}
        found["reply"] = {} if declared.broker == "nats" else header
    return found


def _message_name(consumer: Consumer) -> str:
    name = getattr(consumer.binding.payload_type, "__name__", "")
    return name if name.isidentifier() and name not in ("Any", "dict", "bytes") else _id(consumer.home.channel.name)


def _unique(taken: dict[str, Any], name: str, consumer: Consumer, schema: Mapping[str, Any]) -> str:
    """The name under which the message is in ``taken``: two types of one name are two messages."""
    message = {
        "name": name,
        "contentType": content_type(consumer.binding.payload_type),
        "headers": _HEADERS,
        "payload": dict(schema),
    }
    found, number = name, 1
    while taken.setdefault(found, message) != message:
        number += 1
        found = f"{name}{number}"
    return found


def _id(name: str) -> str:
    """A key: letters, digits, ``.``, ``_`` and ``-``, as the specification has it; ours have no others."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)

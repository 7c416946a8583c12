"""The trigger of each broker: what KEDA's scaler of that broker asks, and what it must not count.

Names of fields: the scalers' own (``pkg/scalers`` in KEDA 2.21; keda.sh/docs/scalers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Declared, Reading
from atleastonce.topology.keda.scaling import Scaling

Metadata = dict[str, str]

_NEVER: Final = 1_000_000_000
"""More messages than ever wait: such a trigger keeps one replica, and asks for no second one."""

_SASL: Final = {"PLAIN": "plaintext", "SCRAM-SHA-256": "scram_sha256", "SCRAM-SHA-512": "scram_sha512"}


def triggers(declared: Declared, reading: Reading, scaling: Scaling) -> Iterator[dict[str, Any]]:
    """What has to be asked about ``reading``, without the reference to who may ask. Nothing where nothing can be counted.

    Raises:
        ConfigurationError: a setting that KEDA needs and nobody gave.
    """
    if reading.place is None:
        return
    if declared.broker == "nats" and reading.holds_retries and not declared.server["clustered"]:
        yield from _nats_apart(declared.server, reading, scaling)
        return
    kind, make = _KINDS[declared.broker]
    metadata = make(declared.server, reading, scaling)
    yield {"type": kind, "name": reading.source.name, "metadata": metadata}
    if declared.broker == "redis":
        # Lag is what nobody was given yet. What waits for a retry, or was held by a process that died, is pending: without
        # this, nobody would be there to take it up when the last replica is gone.
        pending = {name: value for name, value in metadata.items() if name not in ("lagCount", "activationLagCount")}
        pending["pendingEntriesCount"] = str(_NEVER)
        yield {"type": kind, "name": f"{reading.source.name}.pending", "metadata": pending}


def needs_password(declared: Declared) -> list[str]:
    """The names of what is secret about asking this broker, as KEDA's parameters; none where no secret is needed."""
    server = declared.server
    if declared.broker == "kafka":
        return ["username", "password"] if "SASL" in server["security"] else []
    if declared.broker == "redis":
        return (["username"] if server["user"] else []) + (["password"] if server["password"] else [])
    if declared.broker == "sqs":
        return ["awsAccessKeyID", "awsSecretAccessKey"] if server["keys"] else []
    if declared.broker == "pubsub":
        return ["GoogleApplicationCredentials"] if server["keys"] else []
    return ["username", "password"] if declared.broker == "rabbitmq" else []


def identity(declared: Declared) -> str | None:
    """The provider of a pod's identity that takes a secret's place; None where the broker knows none."""
    provider = {"sqs": "aws", "pubsub": "gcp"}.get(declared.broker)
    return None if provider is None or declared.server["keys"] else provider


def _kafka(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    place = reading.place or {}
    found = {
        "bootstrapServers": ",".join(server["servers"]),
        "consumerGroup": place["group"],
        "topic": place["topic"],
        "lagThreshold": str(scaling.threshold(reading)),
        "offsetResetPolicy": server["reset"],
    }
    if reading.role == "retry":
        # A partition whose first message is not due yet does not move: it is no work, and still keeps the last replica.
        found["excludePersistentLag"] = "true"
    if "SSL" in server["security"].replace("SASL", ""):
        found["tls"] = "enable"
    if "SASL" in server["security"]:
        mechanism = server["mechanism"]
        if mechanism not in _SASL and scaling.auth is None:
            raise ConfigurationError(
                f"KEDA needs more than a user and a password for {mechanism or 'SASL'}; write a TriggerAuthentication with what "
                "it needs, and give --auth NAME"
            )
        if mechanism in _SASL:
            found["sasl"] = _SASL[mechanism]
    return found


def _rabbitmq(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    # Over AMQP the count is what nobody was given; the management API counts what is out, too.
    management = server.get("management")
    amqp = f"{'amqps' if server['tls'] else 'amqp'}://{server['servers'][0]}"
    return {
        "host": management or amqp,
        "protocol": "http" if management else "amqp",
        "vhostName": server["virtual_host"],
        "queueName": (reading.place or {})["queue"],
        "mode": "QueueLength",
        "value": str(scaling.threshold(reading)),
    }


def _sqs(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    if not server["region"]:
        raise ConfigurationError(
            "KEDA asks SQS in a region, and the broker URL names none; write sqs://eu-west-1, or add ?region=eu-west-1"
        )
    found = {
        "queueURL": (reading.place or {})["queue"],
        "awsRegion": server["region"],
        "queueLength": str(scaling.threshold(reading)),
        # A retry waits behind its visibility timeout: SQS counts it as in flight, and it is no work until then.
        "scaleOnInFlight": "false" if reading.holds_retries or reading.role == "retry" else "true",
    }
    if server["endpoint"]:
        found["awsEndpoint"] = server["endpoint"]
    return found


def _nats(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    place = reading.place or {}
    return {
        "natsServerMonitoringEndpoint": _monitoring(server, scaling),
        "account": scaling.account,
        "stream": place["stream"],
        "consumer": place["consumer"],
        "lagThreshold": str(scaling.threshold(reading)),
    }


def _monitoring(server: Mapping[str, Any], scaling: Scaling) -> str:
    return scaling.monitoring or f"{server['servers'][0].rpartition(':')[0]}:8222"


def _nats_apart(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Iterator[dict[str, Any]]:
    """What nobody was given yet, and what is out: KEDA's own scaler of NATS only knows their sum, and a retry that waits is out.

    The server says both, at the address that the own scaler asks, too. For one server alone: of several, that scaler finds the one
    that leads the consumer, and this one does not.
    """
    place = reading.place or {}
    account = quote(scaling.account, safe="$")
    consumer = (
        f'account_details.#(name=="{scaling.account}").stream_detail.#(name=="{place["stream"]}")'
        f'.consumer_detail.#(name=="{place["consumer"]}")'
    )
    # What is out keeps the last replica, and asks for no second one.
    counts = (("", "num_pending", scaling.threshold(reading)), (".pending", "num_ack_pending", _NEVER))
    for suffix, field, target in counts:
        metadata = {
            "url": f"http://{_monitoring(server, scaling)}/jsz?acc={account}&consumers=true",
            "valueLocation": f"{consumer}.{field}",
            "targetValue": str(target),
        }
        yield {"type": "metrics-api", "name": f"{reading.source.name}{suffix}", "metadata": metadata}


def _pubsub(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    return {
        "subscriptionName": f"projects/{server['project']}/subscriptions/{(reading.place or {})['subscription']}",
        "mode": "SubscriptionSize",
        "value": str(scaling.threshold(reading)),
    }


def _redis(server: Mapping[str, Any], reading: Reading, scaling: Scaling) -> Metadata:
    place = reading.place or {}
    found = {
        "address": server["servers"][0],
        "stream": place["stream"],
        "consumerGroup": place["group"],
        "lagCount": str(scaling.threshold(reading)),
        "activationLagCount": "0",
        "databaseIndex": str(server["database"]),
    }
    if server["tls"]:
        found["enableTLS"] = "true"
    return found


_KINDS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any], Reading, Scaling], Metadata]]]] = {
    "kafka": ("kafka", _kafka),
    "rabbitmq": ("rabbitmq", _rabbitmq),
    "sqs": ("aws-sqs-queue", _sqs),
    "nats": ("nats-jetstream", _nats),
    "pubsub": ("gcp-pubsub", _pubsub),
    "redis": ("redis-streams", _redis),
}

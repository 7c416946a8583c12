"""What KEDA takes: written down from the ``ScaledObject`` of KEDA 2.21 (its CRD and admission webhook) and from its scalers.

The schemas themselves are asked in `tests/integration/topology/test_keda_schema.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

SPEC = {
    "scaleTargetRef",
    "pollingInterval",
    "initialCooldownPeriod",
    "cooldownPeriod",
    "idleReplicaCount",
    "minReplicaCount",
    "maxReplicaCount",
    "advanced",
    "triggers",
    "fallback",
}
TRIGGER = {"type", "name", "metadata", "authenticationRef", "metricType", "useCachedMetrics"}

# Per trigger: the fields that must be there (in the metadata, or from who authenticates), and those that may.
TRIGGERS: Mapping[str, tuple[set[str], set[str]]] = {
    "kafka": (
        {"bootstrapServers", "consumerGroup"},
        {"topic", "lagThreshold", "activationLagThreshold", "offsetResetPolicy", "allowIdleConsumers"}
        | {"excludePersistentLag", "scaleToZeroOnInvalidOffset", "limitToPartitionsWithLag", "partitionLimitation"}
        | {"ensureEvenDistributionOfPartitions", "fullMetadata", "version", "tls", "unsafeSsl", "sasl", "awsRegion"}
        | {"saslTokenProvider"},
    ),
    "rabbitmq": (
        {"queueName", "host", "mode", "value"},
        {"activationValue", "protocol", "vhostName", "useRegex", "excludeUnacknowledged", "pageSize", "operation"}
        | {"timeout", "unsafeSsl"},
    ),
    "aws-sqs-queue": (
        {"queueURL", "awsRegion"},
        {"queueLength", "activationQueueLength", "awsEndpoint", "scaleOnInFlight", "scaleOnDelayed"},
    ),
    "nats-jetstream": (
        {"natsServerMonitoringEndpoint", "account", "stream", "consumer"},
        {"lagThreshold", "activationLagThreshold", "useHttps"},
    ),
    "metrics-api": (
        {"url", "valueLocation", "targetValue"},
        {"activationTargetValue", "format", "unsafeSsl", "aggregateFromKubeServiceEndpoints", "aggregationType"}
        | {"timeout"},
    ),
    "gcp-pubsub": (
        {"subscriptionName"},
        {"mode", "value", "activationValue", "aggregation", "timeHorizon", "valueIfNull"},
    ),
    "redis-streams": (
        {"address", "stream", "consumerGroup"},
        {"lagCount", "activationLagCount", "pendingEntriesCount", "streamLength", "databaseIndex", "enableTLS"},
    ),
}
NUMBERS = {
    "targetValue",
    "lagThreshold",
    "value",
    "queueLength",
    "lagCount",
    "pendingEntriesCount",
    "activationLagCount",
}
CHOICES = {
    "offsetResetPolicy": {"earliest", "latest"},
    "sasl": {"none", "plaintext", "scram_sha256", "scram_sha512", "oauthbearer", "gssapi"},
    "tls": {"enable", "disable"},
    "protocol": {"amqp", "http", "auto"},
    "excludePersistentLag": {"true", "false"},
    "scaleOnInFlight": {"true", "false"},
    "enableTLS": {"true", "false"},
}
# What a TriggerAuthentication may hand to each trigger.
PARAMETERS = {
    "kafka": {"username", "password", "sasl", "tls", "ca", "cert", "key"},
    "rabbitmq": {"username", "password", "host", "ca", "cert", "key", "tls"},
    "aws-sqs-queue": {"awsAccessKeyID", "awsSecretAccessKey", "awsSessionToken", "awsRegion"},
    "nats-jetstream": set(),
    "metrics-api": {"apiKey", "username", "password", "token", "ca", "cert", "key"},
    "gcp-pubsub": {"GoogleApplicationCredentials"},
    "redis-streams": {"username", "password", "tls"},
}


def violations(document: Mapping[str, Any]) -> list[str]:
    """What a cluster with KEDA would refuse about a list of objects; empty: nothing."""
    found = [] if (document["apiVersion"], document["kind"]) == ("v1", "List") else ["not a list of objects"]
    scaled = [item for item in document["items"] if item["kind"] == "ScaledObject"]
    auths = {item["metadata"]["name"]: item for item in document["items"] if item["kind"] == "TriggerAuthentication"}
    if len(scaled) + len(auths) != len(document["items"]):
        found.append("an object of another kind")
    found += [
        f"apiVersion or name of {item['metadata']}"
        for item in document["items"]
        if item["apiVersion"] != "keda.sh/v1alpha1" or not _LABEL.fullmatch(item["metadata"]["name"])
    ]
    targets = [(item["metadata"].get("namespace"), item["spec"]["scaleTargetRef"]["name"]) for item in scaled]
    if len(set(targets)) != len(targets):
        found.append("the workload is already managed by another ScaledObject")
    for item in scaled:
        found += _scaled(item["spec"], auths)
    return found


def _scaled(spec: Mapping[str, Any], auths: Mapping[str, Any]) -> list[str]:
    found = [f"unknown field {name}" for name in set(spec) - SPEC]
    if not spec["triggers"]:
        found.append("no triggers")
    least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if not (isinstance(least, int) and isinstance(most, int) and 0 <= least <= most and most >= 1):
        found.append("minReplicaCount must be less than or equal to maxReplicaCount")
    if least > 0 and spec.keys() & {"cooldownPeriod", "pollingInterval"}:
        found.append("cooldownPeriod is configured but is not relevant")
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    if not 0 <= behavior["scaleDown"]["stabilizationWindowSeconds"] <= 3600:
        found.append("stabilizationWindowSeconds out of range")
    names = [trigger.get("name") for trigger in spec["triggers"]]
    if len(set(names)) != len(names):
        found.append("two triggers of one name")
    for trigger in spec["triggers"]:
        found += [f"unknown field {name}" for name in set(trigger) - TRIGGER]
        found += _trigger(trigger, auths)
    return found


def _trigger(trigger: Mapping[str, Any], auths: Mapping[str, Any]) -> list[str]:
    kind, metadata = trigger["type"], trigger["metadata"]
    needed, allowed = TRIGGERS[kind]
    found = [f"{kind}: {name} is missing" for name in needed - set(metadata)]
    found += [f"{kind}: no such field {name}" for name in set(metadata) - needed - allowed]
    found += [f"{kind}: {name} is no text" for name, value in metadata.items() if not isinstance(value, str)]
    found += [f"{kind}: {name} is empty" for name, value in metadata.items() if not value]
    found += [f"{name}={metadata[name]}" for name in NUMBERS & set(metadata) if not metadata[name].isdigit()]
    found += [
        f"{name}={metadata[name]}" for name in CHOICES.keys() & set(metadata) if metadata[name] not in CHOICES[name]
    ]
    reference = trigger.get("authenticationRef")
    if reference is not None and reference["name"] in auths:
        spec = auths[reference["name"]]["spec"]
        handed = {each["parameter"] for each in spec.get("secretTargetRef", ())}
        found += [f"{kind}: takes no parameter {name}" for name in handed - PARAMETERS[kind]]
        if not (handed or spec.get("podIdentity", {}).get("provider") in ("aws", "gcp")):
            found.append("a TriggerAuthentication that authenticates nobody")
    return found

"""The objects that are applied to a cluster, as one list."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from atleastonce.durations import readable
from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Declared
from atleastonce.topology.export import Export
from atleastonce.topology.keda.scaling import Scaling
from atleastonce.topology.keda.triggers import identity, needs_password, triggers
from atleastonce.topology.possible import ensure_possible

_MOST: Final = 10
_COOL_DOWN: Final = 300
"""Seconds, as KEDA and Kubernetes have it themselves."""
_LONGEST_COOL_DOWN: Final = 3600
"""Seconds: ``stabilizationWindowSeconds`` takes no more."""


def keda(declared: Declared, scaling: Scaling) -> Export:
    """A ``ScaledObject`` for the service, and the ``TriggerAuthentication`` that its triggers refer to.

    Raises:
        ConfigurationError: another broker; a name, number or setting that has to be changed.
    """
    ensure_possible(declared, "keda")
    scaling.check()
    found = [trigger for reading in declared.readings for trigger in triggers(declared, reading, scaling)]
    if not found:
        raise ConfigurationError(
            f"service {declared.service}: nothing that it reads can be counted; scale it by its processor's load instead"
        )
    auth = _auth(declared, scaling)
    reference = scaling.auth or (auth["metadata"]["name"] if auth else None)
    if reference is not None:
        found = [{**trigger, "authenticationRef": {"name": reference}} for trigger in found]
    most = scaling.most or max(_most(declared), scaling.least)
    cool_down = min(max(_COOL_DOWN, math.ceil(2 * declared.drain)), _LONGEST_COOL_DOWN)
    spec: dict[str, Any] = {
        "scaleTargetRef": {"name": scaling.deployment},
        "minReplicaCount": scaling.least,
        "maxReplicaCount": most,
        "advanced": {
            "horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": cool_down}}}
        },
        "triggers": found,
    }
    if scaling.least == 0:  # else KEDA has no use for it, and warns
        spec["cooldownPeriod"] = cool_down
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(scaling.deployment, scaling),
        "spec": spec,
    }
    items = [auth, scaled] if auth else [scaled]
    return Export({"apiVersion": "v1", "kind": "List", "items": items}, tuple(_notes(declared, scaling, auth, most)))


def _metadata(name: str, scaling: Scaling) -> dict[str, Any]:
    return {"name": name, **({"namespace": scaling.namespace} if scaling.namespace else {})}


def _auth(declared: Declared, scaling: Scaling) -> dict[str, Any] | None:
    provider, secrets = identity(declared), needs_password(declared)
    if scaling.auth is not None or not (provider or secrets):
        return None
    spec: dict[str, Any]
    if provider is not None:
        spec = {"podIdentity": {"provider": provider}}
    else:
        secret = scaling.secret or f"{scaling.deployment}-broker"
        spec = {"secretTargetRef": [{"parameter": each, "name": secret, "key": each} for each in secrets]}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": _metadata(f"{scaling.deployment}-broker", scaling),
        "spec": spec,
    }


def _partitions(declared: Declared) -> int:
    """Of the largest source of a handler; 0 where none has any."""
    sizes = {each.name: int(each.settings.get("partitions", 0)) for each in declared.of_kind("topic")}
    among = max((reading.among for reading in declared.readings), default=1)
    return max((sizes.get(reading.source.channel.name, 0) for reading in declared.readings), default=0) or (
        among if among > 1 else 0
    )


def _most(declared: Declared) -> int:
    return _partitions(declared) or _MOST


def _notes(declared: Declared, scaling: Scaling, auth: dict[str, Any] | None, most: int) -> Iterator[str]:
    for reading in declared.readings:
        if reading.place is None:
            why = (
                "a share group reads it, which KEDA has no scaler for"
                if declared.broker == "kafka"
                else "nothing is kept for it"
            )
            yield f"{reading.source}: {why}, so nothing can be counted; keep at least one replica"
    if auth is not None and "secretTargetRef" in auth["spec"]:
        wanted = auth["spec"]["secretTargetRef"]
        yield f"make secret {wanted[0]['name']} with {' and '.join(each['key'] for each in wanted)}; it is not exported"
    yield (
        f"set terminationGracePeriodSeconds of {scaling.deployment} to more than {readable(declared.drain)}, the service's drain"
    )
    if (partitions := _partitions(declared)) and most > partitions:
        yield f"replicas beyond {partitions}, the partitions of its largest source, would be idle: --max {most}"
    mixed = sorted({str(reading.home) for reading in declared.readings if reading.holds_retries})
    if mixed and (declared.broker == "pubsub" or declared.server.get("clustered")):
        yield f"{', '.join(mixed)}: this broker counts what waits for a retry with all the rest, and KEDA takes it for work"
    if declared.broker == "rabbitmq" and not declared.server.get("management"):
        window = max(consumer.window.messages for consumer in declared.consumers)
        yield (
            f"over AMQP, what is out with a replica (up to {window} messages) is not counted; with the option management= it is"
        )
    if declared.broker == "pubsub":
        yield "KEDA means to drop its gcp-pubsub trigger: keda.sh/blog/2025-09-15-gcp-deprecations"
    if declared.broker == "redis" and scaling.least == 0:
        yield "a publish with a delay is counted nowhere while it waits: with --min 0 it comes when something else does"

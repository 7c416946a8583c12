"""Our documents against KEDA's own: the schemas of its resources, as a cluster has them, and that of its scalers' settings. Its Go
module holds both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from topology_kit import needs_of, read, shop

from atleastonce import Queue, Service
from atleastonce.brokers.cache import install_once, remove_tree
from atleastonce.topology import Scaling, keda

MODULE, VERSION = "github.com/kedacore/keda/v2", "v2.21.0"
SUM = "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps="
FILES = {
    "ScaledObject": "config/crd/bases/keda.sh_scaledobjects.yaml",
    "TriggerAuthentication": "config/crd/bases/keda.sh_triggerauthentications.yaml",
    "scalers": "schema/generated/scalers-schema.json",
}
# Read by all scalers of AWS by way of what they share, which the generated schema leaves out.
AWS = {"awsAccessKeyID", "awsSecretAccessKey"}
URLS = {
    "kafka": "kafka://ada:s3cret@kafka:9092?security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-512",
    "kafka, open": "kafka://one,two",
    "rabbitmq": "rabbitmq://ada:s3cret@mq:5672/shop",
    "rabbitmq, its management": "rabbitmq://ada:s3cret@mq/shop?management=http://mq:15672",
    "sqs": "sqs://AKIAEXAMPLE:s3cret@eu-west-1",
    "nats": "nats://ada:s3cret@nats:4222",
    "pubsub": "pubsub://shop-project",
    "redis": "rediss://ada:s3cret@redis:6379/2",
}


@pytest.fixture(scope="module")
def known() -> Path:
    """A folder with KEDA's files, by the names that they have in `FILES`."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("KEDA's schemas cannot be had: go is not installed")

    def fetch(folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        env = {**os.environ, "GOMODCACHE": str(scratch / "modules"), "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local"}
        command = [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"]
        done = subprocess.run(command, cwd=scratch, env=env, check=True, capture_output=True, timeout=100)
        told = json.loads(done.stdout)
        assert told["Sum"] == SUM, "another content under this version"
        for name, path in FILES.items():
            shutil.copy(Path(told["Dir"], path), folder / name)
        remove_tree(scratch)

    try:
        return install_once(f"keda-schemas-{VERSION}", fetch)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{MODULE} cannot be had: {error}")


@pytest.fixture(scope="module")
def validators(known: Path) -> dict[str, Any]:
    """Of each kind of object; a field that a cluster would leave out without a word is an error here."""
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    found = {}
    for kind in ("ScaledObject", "TriggerAuthentication"):
        (version,) = yaml.safe_load((known / kind).read_text())["spec"]["versions"]
        found[kind] = jsonschema.Draft7Validator(_closed(version["schema"]["openAPIV3Schema"]))
    return found


@pytest.fixture(scope="module")
def scalers(known: Path) -> dict[str, list[dict[str, Any]]]:
    """The parameters of each type of trigger."""
    schema = json.loads((known / "scalers").read_text())
    return {scaler["type"]: scaler["parameters"] for scaler in schema["scalers"]}


def _closed(schema: Any) -> Any:
    """``schema`` without room for fields that it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    fields = schema.get("properties")
    inner = {name: _closed(part) for name, part in schema.items() if part is not fields}
    if isinstance(fields, dict):
        inner["properties"] = {name: _closed(field) for name, field in fields.items()}
        inner["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return inner


def objections(document: dict[str, Any], validators: dict[str, Any]) -> Iterator[str]:
    """What a cluster with KEDA's resources would say of each object."""
    for item in document["items"]:
        for error in validators[item["kind"]].iter_errors(item):
            yield f"{item['kind']}: {error.json_path}: {error.message}"


def misfits(document: dict[str, Any], scalers: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What its triggers set and their scalers do not know, or the other way round."""
    given: set[str] = set()
    for item in document["items"]:
        given |= {each["parameter"] for each in item["spec"].get("secretTargetRef", ())}
    for item in document["items"]:
        for trigger in item["spec"].get("triggers", ()):
            kind, fields = trigger["type"], trigger["metadata"]
            parameters = scalers[kind]
            here = {each["name"] for each in parameters if each.get("metadataVariableReadable")}
            there = {each["name"] for each in parameters if each.get("triggerAuthenticationVariableReadable")}
            yield from (f"{kind} reads no {name}" for name in fields.keys() - here)
            there |= AWS if kind.startswith("aws-") else set()
            if "authenticationRef" in trigger:
                yield from (f"{kind} takes no secret {name}" for name in given - there)
            for each in parameters:
                allowed, value = each.get("allowedValue"), fields.get(each["name"])
                if allowed and value is not None and value not in allowed:
                    yield f"{kind}: {each['name']} is {value}"
                if value is not None and each.get("deprecated"):
                    yield f"{kind}: {each['name']} is deprecated"


def exported(url: str, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = read(keda(needs_of(shop(url)), Scaling(**{"deployment": "billing", **settings})))
    return found


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("broker", URLS)
def test_a_cluster_would_take_it_whole(broker: str, least: int, validators: dict[str, Any]) -> None:
    document = exported(URLS[broker], least=least, namespace="shop")
    assert {item["kind"] for item in document["items"]} >= {"ScaledObject"}
    assert list(objections(document, validators)) == []


@pytest.mark.parametrize("broker", URLS)
def test_each_scaler_knows_what_it_is_told(broker: str, scalers: dict[str, list[dict[str, Any]]]) -> None:
    assert list(misfits(exported(URLS[broker]), scalers)) == []


def test_parts_validate(validators: dict[str, Any], scalers: dict[str, list[dict[str, Any]]]) -> None:
    service = Service("billing", broker=URLS["redis"])

    async def send(order: dict[str, int]) -> None: ...

    service.consumer(Queue("mails", single_active=True, partitions=4))(send)
    document = read(keda(needs_of(service), Scaling("billing")))
    assert list(objections(document, validators)) == []
    assert list(misfits(document, scalers)) == []


def test_the_schemas_find_what_is_wrong(validators: dict[str, Any], scalers: dict[str, list[dict[str, Any]]]) -> None:
    document = exported(URLS["kafka"])
    (scaled,) = [item for item in document["items"] if item["kind"] == "ScaledObject"]
    scaled["spec"]["maxReplicas"] = 5
    trigger = scaled["spec"]["triggers"][0]
    trigger["metadata"]["lagThreshold"] = 5
    told = list(objections(document, validators))
    assert any("maxReplicas" in each for each in told)
    assert any("lagThreshold" in each for each in told)
    trigger["metadata"] |= {"lag": "5", "offsetResetPolicy": "first"}
    assert {"kafka reads no lag", "kafka: offsetResetPolicy is first"} <= set(misfits(document, scalers))

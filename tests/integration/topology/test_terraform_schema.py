"""Our Terraform resources against the providers' own schemas, by way of what is generated from them.

A provider tells its schema to who runs it, and none can be had here. Pulumi runs the same providers, and generates from their
schemas a class of arguments for each resource and block, of which the ones that are needed have no default: its packages hold them.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from topology_kit import needs_of, read, shop

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "topology"))

from terraform_rules import BLOCKS, RESOURCES

from atleastonce.brokers.cache import install_once
from atleastonce.topology import PROVIDERS, terraform

PACKAGES = """\
pulumi-kafka==3.13.3 --hash=sha256:9d3e8d77d00e4d0c86dfd672396be12b98b1845d67fff6803b58d09dca2cef73
pulumi-rabbitmq==3.5.3 --hash=sha256:86bb25516c10f7e65f368ac5b2f7f72e4a624145f043cc245c8e15c7810d0619
pulumi-confluentcloud==2.87.0 --hash=sha256:3bada0b80c83a49d80284ab3e771c113d52b6fb837ffa2202f568a9585bee0cf
pulumi-aws==7.51.1 --hash=sha256:bffc7fb6ce352e9019302498571799a771f7a84234b19ff8b1710a6250b31024
pulumi-gcp==10.2.0 --hash=sha256:714bcf5af7e078869884faa430944f7af6711da74538edb87a3f137fd063b1f2
"""
# Where the arguments of a resource, and of a block in it, are.
CLASSES = {
    "kafka_topic": ("pulumi_kafka/topic.py", "TopicArgs"),
    "confluent_kafka_topic": ("pulumi_confluentcloud/kafka_topic.py", "KafkaTopicArgs"),
    "rabbitmq_queue": ("pulumi_rabbitmq/queue.py", "QueueArgs"),
    "rabbitmq_queue.settings": ("pulumi_rabbitmq/_inputs.py", "QueueSettingsArgs"),
    "rabbitmq_exchange": ("pulumi_rabbitmq/exchange.py", "ExchangeArgs"),
    "rabbitmq_exchange.settings": ("pulumi_rabbitmq/_inputs.py", "ExchangeSettingsArgs"),
    "rabbitmq_binding": ("pulumi_rabbitmq/binding.py", "BindingArgs"),
    "aws_sqs_queue": ("pulumi_aws/sqs/queue.py", "QueueArgs"),
    "aws_sqs_queue_policy": ("pulumi_aws/sqs/queue_policy.py", "QueuePolicyArgs"),
    "aws_sns_topic": ("pulumi_aws/sns/topic.py", "TopicArgs"),
    "aws_sns_topic_subscription": ("pulumi_aws/sns/topic_subscription.py", "TopicSubscriptionArgs"),
    "google_pubsub_topic": ("pulumi_gcp/pubsub/topic.py", "TopicArgs"),
    "google_pubsub_topic.message_storage_policy": ("pulumi_gcp/pubsub/_inputs.py", "TopicMessageStoragePolicyArgs"),
    "google_pubsub_subscription": ("pulumi_gcp/pubsub/subscription.py", "SubscriptionArgs"),
    "google_pubsub_subscription.expiration_policy": (
        "pulumi_gcp/pubsub/_inputs.py",
        "SubscriptionExpirationPolicyArgs",
    ),
    "google_pubsub_subscription.dead_letter_policy": (
        "pulumi_gcp/pubsub/_inputs.py",
        "SubscriptionDeadLetterPolicyArgs",
    ),
    "google_pubsub_subscription.retry_policy": ("pulumi_gcp/pubsub/_inputs.py", "SubscriptionRetryPolicyArgs"),
    "google_pubsub_topic_iam_member": ("pulumi_gcp/pubsub/topic_iam_member.py", "TopicIAMMemberArgs"),
    "google_pubsub_subscription_iam_member": (
        "pulumi_gcp/pubsub/subscription_iam_member.py",
        "SubscriptionIAMMemberArgs",
    ),
}
# The one argument that has another name there.
RENAMED = {"aws_sns_topic_subscription": {"topic": "topic_arn"}}
URLS = {
    "kafka": "kafka://k?replication.factor=3",
    "rabbitmq": "rabbitmq://mq/shop",
    "sqs": "sqs://eu-west-1",
    "pubsub": "pubsub://shop-project",
}
EACH = [(broker, provider) for broker, known in PROVIDERS.items() for provider in known]


class Argument(NamedTuple):
    """One that a provider takes."""

    needed: bool
    type: str


Schema = Mapping[str, Mapping[str, Argument]]


@pytest.fixture(scope="module")
def schema() -> Schema:
    """The arguments of each resource and block."""

    def fetch(folder: Path) -> None:
        wanted = folder / "packages.txt"
        wanted.write_text(PACKAGES)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command += ["--quiet", "--dest", str(folder), "--requirement", str(wanted)]
        subprocess.run(command, check=True, capture_output=True, timeout=100)
        found: dict[str, dict[str, tuple[bool, str]]] = {}
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                names = set(packed.namelist())
                for kind, (path, name) in CLASSES.items():
                    if path in names:
                        found[kind] = dict(_arguments(packed.read(path).decode(), name, RENAMED.get(kind, {})))
            wheel.unlink()
        (folder / "arguments.json").write_text(json.dumps(found))

    try:
        folder = install_once(f"terraform-arguments-{zlib.crc32(PACKAGES.encode()):08x}", fetch)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the providers' schemas cannot be had: {error}")
    given = json.loads((folder / "arguments.json").read_text())
    return {kind: {name: Argument(*each) for name, each in known.items()} for kind, known in given.items()}


def _arguments(source: str, name: str, renamed: Mapping[str, str]) -> Iterator[tuple[str, tuple[bool, str]]]:
    """Of class ``name``: each argument of its ``__init__``, whether it is needed, and its type."""
    (found,) = (each for each in ast.parse(source).body if isinstance(each, ast.ClassDef) and each.name == name)
    (init,) = (each for each in found.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation is not None
        yield renamed.get(argument.arg, argument.arg), (default is None, ast.unparse(argument.annotation))


def objections(document: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    """What the providers would say."""
    for kind, each in document["resource"].items():
        for label, body in each.items():
            yield from _of(
                f"{kind}.{label}", kind, {name: it for name, it in body.items() if name != "lifecycle"}, schema
            )


def _of(where: str, kind: str, body: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    known = schema[kind]
    yield from (f"{where}: {name} is missing" for name, each in known.items() if each.needed and name not in body)
    for name, value in body.items():
        if name not in known:
            yield f"{where}: no argument {name}"
        elif isinstance(value, list):
            for block in value:
                yield from _of(f"{where}.{name}", f"{kind}.{name}", block, schema)
        elif not _fits(value, known[name].type):
            yield f"{where}: {name} is {value!r}, and not {known[name].type}"


def _fits(value: object, type_: str) -> bool:
    if isinstance(value, str):
        return "${" in value.replace("$${", "") or "_builtins.str" in type_
    words = {bool: "_builtins.bool", int: "_builtins.int", dict: "Mapping["}
    return words[type(value)] in type_


@pytest.mark.parametrize(("broker", "provider"), EACH)
def test_the_providers_know_what_we_write(broker: str, provider: str, schema: Schema) -> None:
    document = read(terraform(needs_of(shop(URLS[broker])), provider))
    assert document["resource"]
    assert list(objections(document, schema)) == []


def test_the_schemas_find_what_is_wrong(schema: Schema) -> None:
    document = read(terraform(needs_of(shop(URLS["pubsub"]))))
    (subscription, *_) = document["resource"]["google_pubsub_subscription"].values()
    del subscription["topic"]
    subscription["colour"] = "red"
    subscription["ack_deadline_seconds"] = "soon"
    subscription["expiration_policy"] = [{"never": True}]
    found = "\n".join(objections(document, schema))
    for words in (": topic is missing", ": no argument colour", ": ack_deadline_seconds is 'soon'", ": ttl is missing"):
        assert words in found


def test_the_rules_of_the_unit_tests_are_theirs(schema: Schema) -> None:
    """They run without any download, and go no further than these."""
    for kind, (needed, allowed, _) in RESOURCES.items():
        assert (needed | allowed) <= schema[kind].keys(), kind
        assert {name for name, each in schema[kind].items() if each.needed} <= needed, kind
    for kind, (needed, allowed) in BLOCKS.items():
        assert (needed | allowed) <= schema[kind].keys(), kind
        assert {name for name, each in schema[kind].items() if each.needed} <= needed, kind

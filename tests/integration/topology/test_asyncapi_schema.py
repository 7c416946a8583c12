"""Our documents against AsyncAPI's own JSON Schema, which its npm package holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from topology_kit import needs_of, read, shop

from atleastonce import Queue, Service
from atleastonce.brokers.cache import install_once
from atleastonce.topology import asyncapi

PACKAGE = "@asyncapi/specs@6.11.1"
SCHEMA = "package/schemas/3.0.0-without-$id.json"
URLS = {
    "kafka": "kafka://one,two",
    "rabbitmq": "rabbitmq://mq/shop",
    "sqs": "sqs://eu-west-1",
    "nats": "tls://nats",
    "pubsub": "pubsub://shop-project",
    "redis": "rediss://redis/2",
    "sqlite": "sqlite:///shop.db",
    "memory": "memory://",
}


@pytest.fixture(scope="module")
def validator() -> Any:
    """Of AsyncAPI 3.0.0."""
    jsonschema = pytest.importorskip("jsonschema")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{PACKAGE} cannot be had: npm is not installed")

    def fetch(folder: Path) -> None:
        subprocess.run([npm, "pack", PACKAGE], cwd=folder, check=True, capture_output=True, timeout=100)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as package:
            content = package.extractfile(SCHEMA)
            assert content is not None
            (folder / "schema.json").write_bytes(content.read())

    try:
        folder = install_once("asyncapi-specs-6.11.1", fetch)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{PACKAGE} cannot be had: {error}")
    return jsonschema.Draft7Validator(json.loads((folder / "schema.json").read_text()))


@pytest.mark.parametrize("broker", URLS)
def test_a_document_validates(broker: str, validator: Any) -> None:
    document = read(asyncapi(needs_of(shop(URLS[broker])), "1.0.0"))
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("broker", URLS)
def test_a_responder_validates(broker: str, validator: Any) -> None:
    service = Service("quotes", broker=URLS[broker])

    async def quote(request: dict[str, int]) -> float:
        return 1.0

    service.responder(Queue("quotes"))(quote)
    document = read(asyncapi(needs_of(service), "1.0.0"))
    assert "reply" in document["operations"]["quotes.receive"]
    assert [error.message for error in validator.iter_errors(document)] == []


def test_the_schema_finds_what_is_wrong(validator: Any) -> None:
    document = read(asyncapi(needs_of(shop("kafka://k")), "1.0.0"))
    next(iter(document["operations"].values()))["action"] = "subscribe"
    assert list(validator.iter_errors(document))

"""SQS and SNS (and EventBridge, DynamoDB): an emulator. It proves wiring and its own semantics, not the service's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from . import ready
from .model import HOST, Command, Image, NotReady, Place, Recipe
from .progress import Progress
from .python_packages import environment

VERSION = "1.5.33"
PORTS = {"main": 4566}


def install(progress: Progress) -> Path:
    """The emulator in the cache, in an environment of its own: it pins an older botocore. Raises `Unavailable`."""
    return environment("sqs", "sqs", progress, megabytes=76, text="fetching ministack", version=VERSION)


def prepare(install: Path, place: Place) -> Command:
    """Everything is in the environment. State is kept over an orderly restart, not over `kill -9`."""
    place.data.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(place.directory),
        "GATEWAY_PORT": str(place.port),
        "BIND_HOST": HOST,  # all addresses otherwise
        "MINISTACK_HOST": HOST,
        "IOT_MTLS_ENABLED": "0",  # a second port on all addresses otherwise
        "SFTP_ENABLED": "0",
        "PERSIST_STATE": "1",
        "STATE_DIR": str(place.data),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return Command([str(install / "bin" / "python"), "-I", "-m", "ministack"], env, str(place.directory))


def probe(host: str, port: int, url: str) -> str | None:
    """`ListQueues`, unsigned: an emulator's answer. AWS itself, which is meant where no port is given, is not asked: what
    uses it has credentials, and says what is wrong with them."""
    if _is_aws(url):
        return "Amazon SQS"
    list_queues(host, port)
    try:
        version = json.loads(ready.http(f"http://{host}:{port}/_ministack/health")).get("version")
    except (NotReady, ValueError):
        return None  # another emulator
    return str(version) if version else None


def _is_aws(url: str) -> bool:
    network = urlsplit(url).netloc.rpartition("@")[2]
    return not network or (":" not in network and "." not in network and network != "localhost")


def list_queues(host: str, port: int) -> None:
    """Raises `NotReady` or `OSError` unless it is answered."""
    base = f"http://{host}:{port}"
    headers = {"X-Amz-Target": "AmazonSQS.ListQueues", "Content-Type": "application/x-amz-json-1.0"}
    # Emulators choose the service by the credential's scope; this one is no secret.
    scope = "Credential=test/20240101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0"
    answer = ready.http(base, data=b"{}", headers={**headers, "Authorization": f"AWS4-HMAC-SHA256 {scope}"})
    if not isinstance(json.loads(answer or b"null"), dict):
        raise NotReady("ListQueues was not answered by an object")


RECIPE = Recipe(
    name="sqs",
    ports=PORTS,
    image=Image(
        "ministackorg/ministack:1.5.33",
        {"main": 0},  # it writes its own port into the URLs of queues
        env=lambda place: {"GATEWAY_PORT": str(place.port), "MINISTACK_HOST": HOST, "IOT_MTLS_ENABLED": "0"},
    ),
    url=lambda port: f"sqs://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=probe,
)

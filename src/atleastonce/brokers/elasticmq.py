"""ElasticMQ: a second emulator of SQS, without SNS. Where it and the other one differ, one of them is wrong."""

from __future__ import annotations

import os
from pathlib import Path

from . import java, sqs
from .cache import install_once
from .model import HOST, Command, Image, Place, Recipe
from .progress import Progress, Silent

VERSION = "1.6.14"
PORTS = {"main": 9324}

# It lives in 100 MB; the first compiler is enough for a development broker and starts sooner.
FLAGS = ["-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
CLASS_PATH = "libs/*"

SETTINGS = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "{host}", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "{host}", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
"""


def install(progress: Progress) -> Path:
    """Jars in the cache; a Java runtime beside them. Raises `Unavailable`."""
    java.runtime("elasticmq", progress)

    def build(folder: Path) -> None:
        java.fetch_jars("elasticmq", "elasticmq", folder / "libs", progress)
        for leftover in [*folder.glob("*.py"), *folder.glob("*.json")]:
            leftover.unlink()

    return install_once(f"elasticmq-{VERSION}", build)


def prepare(install: Path, place: Place) -> Command:
    """Write the settings. Messages live in memory."""
    program = java.runtime("elasticmq", Silent())
    settings = place.directory / "elasticmq.conf"
    settings.write_text(SETTINGS.format(host=HOST, port=place.port))
    env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(place.directory)}
    argv = [str(program), *FLAGS, f"-Dconfig.file={settings}", "-cp", CLASS_PATH, "org.elasticmq.server.Main"]
    return Command(argv, env, str(install))


def probe(host: str, port: int, url: str) -> str | None:
    """`ListQueues`, as any SQS answers it; what it is, it does not say."""
    del url
    sqs.list_queues(host, port)
    return None


RECIPE = Recipe(
    name="elasticmq",
    ports=PORTS,
    image=Image(f"softwaremill/elasticmq:{VERSION}", {"main": 9324}),
    # It refuses larger ones, as SQS did until 2025.
    url=lambda port: f"sqs://{HOST}:{port}?max_message_bytes=256KiB",
    install=install,
    prepare=prepare,
    probe=probe,
    version=lambda _place: VERSION,
)

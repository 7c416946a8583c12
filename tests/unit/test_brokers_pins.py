"""What is fetched is pinned, and containers and native processes agree."""

import re
from pathlib import Path

import pytest

from atleastonce.brokers.containers import image_name
from atleastonce.brokers.java import pinned_jars
from atleastonce.brokers.kafka import ONE_NODE
from atleastonce.brokers.recipes import RECIPES
from atleastonce.brokers.tools import PINS

COMPOSE = (Path(__file__).resolve().parents[2] / "compose.yaml").read_text()
REQUIREMENTS = sorted(path for path in PINS.glob("*.txt") if "==" in path.read_text())


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_package_has_its_digests(path: Path) -> None:
    entries = re.split(r"\n(?=\S)", path.read_text().strip())
    for entry in entries:
        assert re.match(r"[\w.\-]+==[\w.]+( ;[^\\\n]*)? \\\n", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_every_jar_has_its_digest() -> None:
    jars = pinned_jars("kafka")
    assert "org.apache.kafka:kafka_2.13:4.3.1" in {jar.coordinate for jar in jars}
    for jar in jars:
        assert jar.coordinate.count(":") == 2
        assert re.fullmatch(r"[0-9a-f]{64}", jar.sha256)
        assert jar.size > 0


@pytest.mark.parametrize("module", ["pstest", "toxiproxy"])
def test_every_go_module_has_its_digest(module: str) -> None:
    required = re.findall(
        r"^\s*(?:require )?([\w./\-]+\.[\w./\-]+) (v\S+)", (PINS / module / "go.mod").read_text(), re.M
    )
    digests = (PINS / module / "go.sum").read_text()
    assert required
    for path, version in required:
        assert re.search(rf"^{re.escape(path)} {re.escape(version)}(/go\.mod)? h1:", digests, re.M), path


def test_no_pin_says_where_it_comes_from() -> None:
    for path in PINS.rglob("*.txt"):
        assert "://" not in path.read_text(), path


# The container of `pubsub` is what `pubsub-google` runs natively.
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"pubsub-google"}))
def test_compose_has_the_same_broker(name: str) -> None:
    recipe = RECIPES[name]
    service = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", COMPOSE, re.M)
    assert service is not None
    text = service[1]
    assert "healthcheck:" in text
    assert re.search(rf"image: \$\{{ALO_IMAGE_{name.upper()}:-[\w./\-]+:[\w.\-]+\}}", text)
    if recipe.image is None:
        assert str(recipe.ports["main"]) in text
        return
    assert f":-{recipe.image.default}}}" in text
    for purpose, inside in recipe.image.ports.items():
        assert f'"127.0.0.1:{recipe.ports[purpose]}:{inside or recipe.ports[purpose]}"' in text


def test_every_image_is_named_by_a_whole_version() -> None:
    images = re.findall(r"image: \$\{ALO_IMAGE_\w+:-([\w./\-]+):([\w.\-]+)\}", COMPOSE)
    assert len(images) == COMPOSE.count("image:")
    for name, tag in images:
        # PostgreSQL's releases have two numbers.
        assert re.match(r"\d+\.\d+(?![.\w])" if name == "postgres" else r"\d+\.\d+\.\d+(?![.\w])", tag), (name, tag)


def test_compose_publishes_on_loopback_only() -> None:
    published = re.findall(r'- "([^"]*:\d+)"', COMPOSE)
    assert published
    assert all(each.startswith("127.0.0.1:") for each in published)


def test_compose_sets_up_kafka_alike() -> None:
    for key, value in ONE_NODE.items():
        assert f'KAFKA_{key.upper().replace(".", "_")}: "{value}"' in COMPOSE


def test_the_image_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    image = RECIPES["nats"].image
    assert image is not None
    monkeypatch.delenv("ALO_IMAGE_NATS", raising=False)
    assert image_name("nats", image) == image.default
    monkeypatch.setenv("ALO_IMAGE_NATS", "mirror.test/nats:2.12")
    assert image_name("nats", image) == "mirror.test/nats:2.12"

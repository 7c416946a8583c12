"""What the package promises before anything is called: a light import, one version, types that travel."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import atleastonce

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

HEAVY = {
    # broker and store clients
    "aiokafka", "boto3", "botocore", "confluent_kafka", "google.cloud", "nats", "pika", "psycopg", "redis",
    # the command line, the test kit, optional codecs and loops
    "hypothesis", "prometheus_client", "pydantic", "pytest", "rich", "testcontainers", "typer", "uvloop",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    """The names in sys.modules of a fresh interpreter that ran the statement."""
    probe = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    # An interpreter may preload modules of its own (a .pth file does): only what the import adds counts.
    bare = modules_after("pass")
    added = modules_after("import atleastonce") - bare
    assert "atleastonce" in added
    assert "asyncio" not in added
    everything = modules_after("from atleastonce import *") - bare
    assert "atleastonce.service" in everything
    assert not HEAVY & everything


def test_the_light_import_check_sees_a_heavy_one() -> None:
    assert "rich" in modules_after("import atleastonce, rich") - modules_after("pass")


def test_version_is_the_installed_one() -> None:
    assert atleastonce.__version__ == importlib.metadata.version("atleastonce") == VERSION


BROKER_EXTRAS = {"kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis"}


def requirements_of(extra: str) -> set[str]:
    """What an extra adds, as recorded in the installed metadata (self-references are resolved there)."""
    lines = importlib.metadata.requires("atleastonce") or []
    return {line.partition(";")[0].strip() for line in lines if f"extra == '{extra}'" in line.replace('"', "'")}


@pytest.mark.parametrize("extra", sorted(BROKER_EXTRAS))
def test_the_extra_all_covers_every_broker(extra: str) -> None:
    assert requirements_of(extra)
    assert requirements_of(extra) <= requirements_of("all")


def test_the_core_requires_no_client() -> None:
    lines = importlib.metadata.requires("atleastonce") or []
    core = {line.partition(">")[0] for line in lines if "extra ==" not in line}
    assert core == {"jmespath", "msgspec", "rich", "typer"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built as a release is."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", place, ROOT], check=True, capture_output=True)
    (built,) = place.glob("*.whl")
    return built


def test_wheel_carries_types_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "atleastonce/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # Only the package: a stray top-level `tests` or `adapters` would clash with other distributions.
    assert {name.split("/")[0] for name in names} == {"atleastonce", f"atleastonce-{VERSION}.dist-info"}

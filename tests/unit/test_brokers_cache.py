"""Installations are complete or absent, and built once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atleastonce.brokers.cache import cache_dir, install_once, remove_tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALO_CACHE", str(tmp_path / "cache"))


def test_it_is_built_once() -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("content")

    first = install_once("thing-1", build)
    assert install_once("thing-1", build) == first
    assert len(builds) == 1
    assert (first / "file").read_text() == "content"
    assert not builds[0].exists()


def test_a_build_that_fails_leaves_nothing() -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("of it")
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError, match="the network went away"):
        install_once("thing-1", build)
    assert not list((cache_dir() / "building").iterdir())
    assert not (cache_dir() / "installed" / "thing-1").exists()
    assert install_once("thing-1", lambda folder: (folder / "whole").write_text("")).joinpath("whole").exists()


def test_what_a_killed_build_left_is_not_built_upon() -> None:
    left = cache_dir() / "building" / "thing-1"
    left.mkdir(parents=True)
    (left / "half").write_text("of it")
    done = install_once("thing-1", lambda folder: (folder / "whole").write_text(""))
    assert [path.name for path in done.iterdir()] == ["whole"]


def test_threads_and_processes_wait_for_one_build(tmp_path: Path) -> None:
    started, go, builds = threading.Event(), threading.Event(), []

    def build(folder: Path) -> None:
        builds.append(folder)
        started.set()
        assert go.wait(20)

    first = threading.Thread(target=install_once, args=("thing-1", build))
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=install_once, args=("thing-1", build))
    second.start()
    code = (
        "from atleastonce.brokers.cache import install_once\n"
        "print('asking', flush=True)\n"
        "install_once('thing-1', lambda folder: print('built', flush=True))\n"
        "print('has it', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "asking\n"
        go.set()
        assert other.stdout.read() == "has it\n"
    first.join(20)
    second.join(20)
    assert len(builds) == 1


def test_read_only_trees_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "closed"
    folder.mkdir(parents=True)
    (folder / "file").write_text("")
    folder.chmod(0o500)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    remove_tree(tmp_path / "tree")

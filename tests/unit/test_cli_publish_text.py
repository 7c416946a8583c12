"""A payload that was meant as JSON and is none is refused, instead of becoming a poison message by a typo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def publish(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = f"sqlite:///{tmp_path}/queue.db"
    command = [sys.executable, "-m", "atleastonce", "publish", "work", "--queue", "--broker", url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("payload", ['{"a":1', "[1, 2", ' "open'])
def test_broken_json_is_refused_with_the_way_out(tmp_path: Path, payload: str) -> None:
    done = publish(tmp_path, payload)
    assert done.returncode == 2
    assert "looks like JSON and is none" in done.stderr
    assert "--text" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "queue.db").exists(), "nothing was half done"


@pytest.mark.parametrize("arguments", [["hello"], ['{"a":1', "--text"], ['{"a":1}']])
def test_text_and_json_are_published(tmp_path: Path, arguments: list[str]) -> None:
    done = publish(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) == 32

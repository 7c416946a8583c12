"""``dlq redrive --edit``: one message with another body."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from atleastonce.cli.dlq import options as o
from atleastonce.cli.errors import Problem
from atleastonce.cli.signals import interruptible
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.redrive import Letter, Selection
from atleastonce.patterns.redrive.letters import NO_JSON


def check_edit(edit: str | None, body_file: Path | None, audit: str | None, *, dry_run: bool) -> None:
    if body_file is not None and edit is None:
        raise ConfigurationError("--body-file is the body for --edit ID; which message?")
    if edit is None:
        return
    if audit is None or audit == "-":
        raise ConfigurationError("--edit keeps the original body in the audit: give it a file with --audit FILE")
    if dry_run:
        raise ConfigurationError("--edit and --dry-run exclude each other; `dlq show --id` shows the message")


def edited(target: o.Target, id: str, body_file: Path | None) -> Callable[[Letter], bytes] | None:
    """What gives the new body; None if it is the old one."""
    letter = interruptible(_find(target, id))
    old = letter.body
    new = body_file.read_bytes() if body_file is not None else _from_editor(old)
    if new == old:
        return None
    if letter.json is not NO_JSON:
        try:
            msgspec.json.decode(new)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(
                f"the body of {id} was JSON and is none any more ({error}); nothing was sent"
            ) from None
    return lambda _: new


async def _find(target: o.Target, id: str) -> Letter:
    async with target.make() as opened:
        for letters in target.letters(opened):
            async with aclosing(letters.letters(Selection(id=[id]))) as found:
                async for letter in found:
                    return letter
    raise Problem(f"{id} is not among the dead letters")


def _from_editor(body: bytes) -> bytes:
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        body.decode()
    except UnicodeDecodeError:
        raise ConfigurationError("the body is no text; change it elsewhere and give it with --body-file") from None
    with tempfile.TemporaryDirectory(prefix="atleastonce-") as folder:
        file = Path(folder, "body.json")
        file.write_bytes(body)
        try:
            ended = subprocess.run([*editor, str(file)], check=False)  # noqa: S603 - the user's own editor
        except OSError as error:
            raise ConfigurationError(
                f"the editor {editor[0]} does not start ({error.strerror}); set EDITOR, or give --body-file"
            ) from None
        if ended.returncode:
            raise Problem(f"{editor[0]} ended with {ended.returncode}; nothing was sent")
        new = file.read_bytes()
    # Editors end the last line; the message had no such line end.
    return new[:-1] if new == body + b"\n" or (new.endswith(b"\n") and not body.endswith(b"\n")) else new

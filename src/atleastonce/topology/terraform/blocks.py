"""What a configuration is made of: blocks with labels that Terraform takes, and texts that it reads as they are."""

from __future__ import annotations

import re
from typing import Any


class Blocks:
    """The resources of one configuration.

    Attributes:
        resources: by type and label.
        data: what is looked up, likewise.
    """

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.data: dict[str, dict[str, Any]] = {}
        self._labels: dict[tuple[str, str], str] = {}

    def add(self, kind: str, name: str, body: dict[str, Any], *, keep: bool = True) -> str:
        """A resource of type ``kind`` for what is called ``name``; its address.

        Args:
            kind: as the provider calls it.
            name: unique for each ``kind``.
            body: its arguments.
            keep: whether Terraform must refuse to destroy it: what holds messages.
        """
        label = self._label(kind, name)
        kept = {"lifecycle": {"prevent_destroy": True}} if keep else {}
        self.resources.setdefault(kind, {})[label] = {**body, **kept}
        return f"{kind}.{label}"

    def address(self, kind: str, name: str) -> str | None:
        """Of a resource that was added."""
        label = self._labels.get((kind, name))
        return None if label is None else f"{kind}.{label}"

    def _label(self, kind: str, name: str) -> str:
        """Letters, digits, ``_`` and ``-``, not beginning with a digit; and no two alike."""
        taken = self.resources.get(kind, {})
        plain = label = re.sub(r"[^A-Za-z0-9_-]", "_", name if name[:1].isalpha() else f"_{name}")
        number = 1
        while label in taken:
            number += 1
            label = f"{plain}_{number}"
        self._labels[kind, name] = label
        return label


def literal(value: Any) -> Any:
    """``value`` with the texts in it taken as they are: ``${`` and ``%{`` begin a template in Terraform."""
    if isinstance(value, str):
        return value.replace("${", "$${").replace("%{", "%%{")
    if isinstance(value, dict):
        return {literal(name): literal(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [literal(each) for each in value]
    return value

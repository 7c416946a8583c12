"""What a conformance case is: a numbered test that names what it needs of a broker."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from atleastonce.testing.conformance.needs import Need

CaseBody = TypeVar("CaseBody", bound=Callable[..., Awaitable[None]])

_NAME = re.compile(r"test_(\d{2}[a-z]?)_(\w+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        id: stable and never used again for something else: two digits, and a letter where a case has several sides.
        name: a sentence.
        section: the heading it is listed under.
        needs: what a broker must have for the case to say anything about it.
    """

    id: str
    name: str
    section: str
    needs: tuple[Need, ...]


def requires(*needs: Need) -> Callable[[CaseBody], CaseBody]:
    """State what a case needs. Where a broker lacks it, the case is reported as *not supported*, with the need's name."""

    def attach(body: CaseBody) -> CaseBody:
        body.conformance_needs = needs  # type: ignore[attr-defined]
        return body

    return attach


class Section:
    """Base of the classes that hold cases; ``section`` is their heading in the table."""

    section: str = ""


def case_of(cls: type[Section], method: str) -> Case | None:
    """The case that ``method`` of a suite is; None if it is no case (a test of the subclass's own)."""
    match = _NAME.fullmatch(method)
    if match is None:
        return None
    owner = next((base for base in cls.__mro__ if method in vars(base)), None)
    if owner is None or not issubclass(owner, Section):
        return None
    body: Any = vars(owner)[method]
    return Case(match[1], match[2].replace("_", " "), owner.section, getattr(body, "conformance_needs", ()))


def cases_of(cls: type[Section]) -> list[Case]:
    """All cases of a suite, by number.

    Raises:
        ValueError: two cases share an id.
    """
    found: dict[str, Case] = {}
    for method in dir(cls):
        case = case_of(cls, method)
        if case is not None and found.setdefault(case.id, case) is not case:
            raise ValueError(f"case {case.id} exists twice: {found[case.id].name!r} and {case.name!r}")
    return [found[id] for id in sorted(found)]

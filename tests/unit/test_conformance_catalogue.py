"""The plan's cases: each is written, or listed with the reason why not; and what is kept of them is compared with a run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atleastonce.testing.conformance import ConformanceSuite, cases_of, fresh, table
from atleastonce.testing.conformance.catalogue import ABSENT, PLANNED, Absent, numbers
from atleastonce.testing.conformance.needs import OWN_BROKER
from atleastonce.testing.conformance.results import Result, Results, write


def test_written_and_absent_cases_are_the_whole_plan_and_none_is_both() -> None:
    written, absent = numbers(case.id for case in cases_of(ConformanceSuite)), numbers(ABSENT)
    assert written | absent == set(PLANNED) == set(range(1, 69))
    assert not written & absent, "a case that is written has to leave catalogue.ABSENT"


def test_what_is_absent_belongs_to_a_section_of_the_suite_and_has_a_reason() -> None:
    sections = {case.section for case in cases_of(ConformanceSuite)}
    for id, case in ABSENT.items():
        assert id in {f"{number:02}" for number in PLANNED}
        assert case.section in sections
        assert " " in case.name
        assert case.reason


ONE = Result("works", "A. First", "pass")
KEPT = Results("one", "One 1.0", {"01": ONE, "02": Result("breaks", "B. Second", "known gap", "because")})


def test_the_page_has_a_row_and_a_reason_for_what_is_not_built() -> None:
    absent = {
        "01": Absent("", "", "not built yet", ""),
        "03": Absent("flies", "B. Second", "not built yet", "no wings"),
    }
    page = table.render([KEPT], absent)
    assert "| 03 flies | · |" in page
    assert "### Not built yet\n\n- 03 flies: no wings\n" in page
    assert "| 01 works | ✓ |" in page, "what was run is not absent"


def changed(broker: str = "One 1.0", **cases: Result | None) -> Results:
    merged = {**KEPT.cases, **{name.strip("_"): case for name, case in cases.items()}}
    return Results("one", broker, {id: case for id, case in merged.items() if case is not None})


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (changed("One 1.1", _02=Result("breaks", "B. Second", "pass")), "one 02: is"),
        (changed(_01=Result("works well", "A. First", "pass")), 'one 01: is "works well"'),
        (changed(_01=Result("works", "A. First", "not supported", "wings")), "not supported, wings, kept as"),
        (changed(_02=None), "one 02: is no case, kept as"),
        (changed(_03=ONE), "kept as no case"),
        (Results("two", "", {}), "two: there are no kept results"),
    ],
)
def test_a_run_that_shows_something_else_is_told(
    run: Results, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "kept", KEPT)
    write(tmp_path / "run", run)
    assert fresh.main([str(tmp_path / "run"), str(tmp_path / "kept")]) == 1
    output = capsys.readouterr().out
    assert line in output
    assert "is stale" in output


@pytest.mark.parametrize(
    "run",
    [
        changed(_01=Result("works", "A. First", "fail")),  # the suite itself tells that
        KEPT,
        changed("One 1.1"),
        changed("One 1.1", _01=Result("works", "A. First", "not supported", "wings")),
        changed(_01=Result("works", "A. First", "not supported", OWN_BROKER.name)),
    ],
    ids=["failure", "equal", "version", "version supports less", "place"],
)
def test_versions_and_places_are_no_difference(
    run: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "kept", KEPT)
    write(tmp_path / "kept", msgspec.structs.replace(KEPT, backend="two"))
    write(tmp_path / "run", run)
    assert fresh.main([str(tmp_path / "run"), str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == "two: was not run here; its kept results stand\n"


def test_nothing_to_compare_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        fresh.main([str(tmp_path), str(tmp_path)])
    assert ended.value.code == 2

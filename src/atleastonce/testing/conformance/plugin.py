"""``--conformance-report DIR``: one JSON file of results per backend, also when xdist runs the tests.

Load it with ``pytest_plugins = ["atleastonce.testing.conformance.plugin"]`` in the top ``conftest.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atleastonce.testing.conformance.results import Result, Results, write
from atleastonce.testing.conformance.suite import NOT_SUPPORTED, PROPERTY


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption(
        "--conformance-report",
        metavar="DIR",
        type=Path,
        help="write the results of each backend's conformance suite to DIR/<backend>.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    directory = config.getoption("--conformance-report")
    if directory is not None and not hasattr(config, "workerinput"):  # under xdist the controller writes
        config.pluginmanager.register(_Reporter(directory))


class _Reporter:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._backends: dict[str, Results] = {}
        self._expected: dict[str, int] = {}
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        facts: dict[str, Any] | None = dict(report.user_properties).get(PROPERTY)  # type: ignore[assignment]
        if facts is None:
            return
        name = facts["backend"]
        self._expected[name] = facts["cases"]
        results = self._backends.setdefault(name, Results(name, facts["broker"]))
        verdict = _verdict(report)
        if verdict is not None and results.cases.get(facts["id"], _PASS).result != "fail":
            result, reason = verdict
            results.cases[facts["id"]] = Result(facts["name"], facts["section"], result, reason)

    def pytest_sessionfinish(self) -> None:
        for name, results in sorted(self._backends.items()):
            if len(results.cases) == self._expected[name]:
                write(self._directory, results)
                self._lines.append(f"{name}: {self._directory / name}.json")
            else:
                self._lines.append(
                    f"{name}: not written, {len(results.cases)} of {self._expected[name]} cases were run"
                )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("conformance report")
            for line in self._lines:
                terminalreporter.write_line(line)


_PASS = Result("", "", "pass")


def _verdict(report: pytest.TestReport) -> tuple[Any, str] | None:
    """What this phase of a test says about its case; None if nothing yet."""
    reason = getattr(report, "wasxfail", "").removeprefix("reason: ")
    if report.failed:
        return "fail", "passes although it is a known gap" if "XPASS" in str(report.longrepr) else ""
    if report.skipped and hasattr(report, "wasxfail"):
        return "known gap", reason
    if report.skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "not supported", text.removeprefix("Skipped: ").removeprefix(NOT_SUPPORTED)
    return ("pass", "") if report.when == "call" else None

"""Whether the kept results are still true: ``python -m atleastonce.testing.conformance.fresh RUN KEPT``.

``RUN`` is what a run has just written with ``--conformance-report``, ``KEPT`` what the page is made of. These are no
differences: the version of a broker, and what another version supports; what depends on where a broker comes from (it may
not be killed here, or takes any credentials); a case that has failed, which the suite itself tells; a backend that was
not run, which is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from atleastonce.testing.conformance.needs import OWN_BROKER, WRONG_CREDENTIALS
from atleastonce.testing.conformance.results import Result, Results, read

OF_THE_PLACE = frozenset(need.name for need in (OWN_BROKER, WRONG_CREDENTIALS))
"""What a broker can be asked depends on where it comes from: started here, in a container, named by the environment."""


def differences(run: Results, kept: Results | None) -> Iterator[str]:
    """One line for each thing that ``run`` shows and ``kept`` does not say."""
    if kept is None:
        yield f"{run.backend}: there are no kept results"
        return
    for id in sorted(run.cases.keys() | kept.cases.keys()):
        now, then = run.cases.get(id), kept.cases.get(id)
        if now is not None and now.result == "fail":  # the suite has said so, and says nothing of what is kept
            continue
        if now != then and not (now and then and _may_differ(now, then, same_version=run.broker == kept.broker)):
            yield f"{run.backend} {id}: is {_say(now)}, kept as {_say(then)}"


def _may_differ(now: Result, then: Result, *, same_version: bool) -> bool:
    unsupported = [case for case in (now, then) if case.result == "not supported"]
    other_place = any(case.reason in OF_THE_PLACE for case in unsupported)
    return "fail" not in (now.result, then.result) and (other_place or bool(unsupported and not same_version))


def _say(case: Result | None) -> str:
    if case is None:
        return "no case"
    return f'"{case.name}" ({case.section}): {case.result}' + (f", {case.reason}" if case.reason else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m atleastonce.testing.conformance.fresh", description=__doc__)
    parser.add_argument("run", type=Path, help="the directory that was given to pytest --conformance-report")
    parser.add_argument("kept", type=Path, help="the results that the page is made of, such as docs/conformance")
    given = parser.parse_args(arguments)
    runs, kept = read(given.run), {results.backend: results for results in read(given.kept)}
    if not runs:
        parser.error(f"no results in {given.run}: a whole suite has to run, with --conformance-report {given.run}")
    for backend in sorted(kept.keys() - {run.backend for run in runs}):
        sys.stdout.write(f"{backend}: was not run here; its kept results stand\n")
    found = [line for run in runs for line in differences(run, kept.get(run.backend))]
    for line in found:
        sys.stdout.write(f"{line}\n")
    if found:
        sys.stdout.write(
            f"{given.kept} is stale: run the suite with --conformance-report {given.kept}, then render the page\n"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""`up`, `down`, `status`, `session`: several brokers at once."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from . import containers, state
from .addresses import endpoint, from_environment, masked, required, variable
from .cache import locked
from .leftovers import end_all, end_broker, end_session, lock_of, sessions, sweep_sessions
from .model import Image, NotReady, Place, Recipe, RequiredBrokersMissing, StartFailed, Unavailable
from .ports import free_port, is_free
from .process import own_identity
from .progress import Progress, shown
from .recipes import NAMES, RECIPES
from .running import Running
from .tools import interrupted


class Provisioned(dict[str, Running]):
    """What `up` brought: running brokers by name. Asking for one that could not be had raises its `Unavailable`."""

    def __init__(self) -> None:
        super().__init__()
        self.unavailable: dict[str, Unavailable] = {}
        """Those that could not be had, with the reason."""
        self.state_dir: Path | None = None
        """Where their records, data and logs are: for another process that shall `up` the same ones."""

    def __missing__(self, name: str) -> Running:
        if name in self.unavailable:
            raise self.unavailable[name]
        raise KeyError(name)


def up(
    names: Iterable[str] | None = None,
    *,
    progress: Progress | bool | None = None,
    state_dir: Path | str | None = None,
    fixed_ports: bool = False,
    origin: str | None = None,
) -> Provisioned:
    """Have these brokers running (all when `None`), each fetched, started or found, all in parallel.

    A broker that `up` started before, and that answers, is returned as it is. What it starts outlives this process;
    `down` ends it. `state_dir` holds records, data and logs (default: in the cache). `fixed_ports` asks for the ports
    of `compose.yaml` instead of free ones. `origin` restricts to `"native"` or `"container"` (also through
    `ALO_BROKERS_FROM`); addresses in the environment always win. `progress` is `False` for silence.

    Brokers that cannot be had are in `.unavailable` with the reason. Raises `ValueError` for an unknown name, also in
    `ALO_REQUIRE`, and `RequiredBrokersMissing` when one that this names is missing. On Ctrl-C what this call started is
    ended.
    """
    chosen = _known(names)
    needed = required(chosen)
    home = _home(state_dir)
    sweep_sessions()
    found = Provisioned()
    found.state_dir = home
    started: list[Running] = []

    def bring(name: str) -> Running | Unavailable:
        try:
            running, fresh = _bring(name, home / name, display, fixed_ports, origin)
        except Unavailable as missing:
            display.finished(name, "unavailable")  # why is for whoever called to say, once
            return missing
        if fresh:
            started.append(running)
        display.finished(name, f"{running.version or 'ready'} at {masked(running.url)} ({running.origin})")
        return running

    with shown(progress) as display, ThreadPoolExecutor(max(1, len(chosen)), "brokers") as pool:
        futures = {name: pool.submit(bring, name) for name in chosen}
        try:
            while wait(futures.values(), timeout=0.2).not_done:
                pass
        except BaseException:
            interrupted.set()
            wait(futures.values())
            interrupted.clear()
            for running in started:
                running.stop()
            raise
    for name, future in futures.items():
        result = future.result()
        if isinstance(result, Running):
            found[name] = result
        else:
            found.unavailable[name] = result
    if missing := [found.unavailable[name] for name in sorted(needed) if name in found.unavailable]:
        raise RequiredBrokersMissing(missing)
    return found


def down(names: Iterable[str] | None = None, *, state_dir: Path | str | None = None, purge: bool = False) -> list[str]:
    """End what `up` started (all when `names` is `None`); `purge` removes its data and logs too.

    Returns the names of those that were running. What the environment points to is left alone.
    """
    home = _home(state_dir)
    chosen = _known(names)

    return end_all(home, chosen, purge=purge)


def status(*, state_dir: Path | str | None = None) -> dict[str, Running]:
    """The brokers that run now: those `up` started in this state directory and those the environment points to.

    Processes are looked at, not asked: see `Running.healthy`.
    """
    home = _home(state_dir)
    found: dict[str, Running] = {}
    for name, recipe in RECIPES.items():
        if url := from_environment(name):
            found[name] = Running(recipe, state.Record(name, "environment", url, None, {}), None)
        elif record := state.read(home / name):
            running = Running(recipe, record, home / name)
            if running.is_alive():
                found[name] = running
    return found


@contextlib.contextmanager
def session(
    names: Iterable[str], *, progress: Progress | bool | None = False, origin: str | None = None
) -> Iterator[Provisioned]:
    """Brokers of one's own, with empty data, that end with the block: for tests that kill, pause and restart them.

    When this process is killed, the next `up` or `session` of anyone with the same cache ends what it left.
    Addresses from the environment are shared, as always.
    """
    sweep_sessions()
    me = own_identity()
    home = sessions() / f"{me.pid}-{secrets.token_hex(4)}"
    home.mkdir(parents=True)
    (home / "owner").write_text(f"{me.pid}\n{me.started}")
    try:
        yield up(names, progress=progress, state_dir=home, origin=origin)
    finally:
        end_session(home)


def _bring(
    name: str, directory: Path, progress: Progress, fixed_ports: bool, origin: str | None
) -> tuple[Running, bool]:
    """A running broker, and whether this call started it."""
    recipe = RECIPES[name]
    if url := from_environment(name):
        return _given(name, url), False
    origin = origin or os.environ.get("ALO_BROKERS_FROM") or None
    if origin not in (None, "native", "container"):
        raise Unavailable(name, f"ALO_BROKERS_FROM is {origin!r}: expected native or container")
    with locked(lock_of(directory)):
        record = state.read(directory)
        if record is not None:
            running = Running(recipe, record, directory)
            if running.is_alive() and origin in (None, record.origin) and running.healthy():
                return running, False
        end_broker(name, directory, purge=False)
        ports = _ports(name, record, fixed_ports)
        why_not = "not wanted" if origin == "native" else containers.why_not()
        if recipe.image is None:
            why_not = "it makes no sense in a container"
        if origin == "container" and why_not:
            raise Unavailable(name, why_not)
        if recipe.image and not why_not:
            try:
                return _in_container(recipe, recipe.image, Place(directory, ports), progress), True
            except Unavailable as failed:
                if origin == "container":
                    raise
                progress.step(name, f"{failed.reason}; trying natively")
        return _native(name, directory, ports, progress), True


def _in_container(recipe: Recipe, image: Image, place: Place, progress: Progress) -> Running:
    progress.step(recipe.name, f"starting a container from {containers.image_name(recipe.name, image)}")
    place.directory.mkdir(parents=True, exist_ok=True)
    container = containers.create(recipe.name, image, place)
    url = recipe.url(place.port)
    record = state.Record(recipe.name, "container", url, None, dict(place.ports), container=container)
    state.write(place.directory, record)
    running = Running(recipe, record, place.directory)
    try:
        running.wait_ready()
    except BaseException:
        containers.remove_left(place.directory)
        raise
    return running


def _native(name: str, directory: Path, ports: dict[str, int], progress: Progress) -> Running:
    recipe = RECIPES[name]
    install = recipe.install(progress)
    place = Place(directory, ports)
    for attempt in (1, 2, 3):
        progress.step(name, "starting")
        place.directory.mkdir(parents=True, exist_ok=True)
        command = recipe.prepare(install, place)
        record = state.Record(name, "native", recipe.url(place.port), None, dict(place.ports), None, command)
        running = Running(recipe, record, directory)
        try:
            running.start()
            break
        except StartFailed:
            running.stop()
            # Between choosing a port and binding it somebody else may have taken it; nothing else is tried again.
            if attempt == 3 or interrupted.is_set() or all(map(is_free, place.ports.values())):
                raise
            place = Place(directory, {purpose: free_port() for purpose in recipe.ports})
        except BaseException:
            running.stop()
            raise
    else:
        raise StartFailed(name, "no free port")
    return running


def _given(name: str, url: str) -> Running:
    """A broker at an address from the environment, which must answer now."""
    recipe = RECIPES[name]
    host, port = endpoint(name, url)
    try:
        version = recipe.probe(host, port, url)
    except (OSError, NotReady) as error:
        raise Unavailable(name, f"{variable(name)}={masked(url)} does not answer: {error}") from error
    return Running(recipe, state.Record(name, "environment", url, version, {}), None)


def _ports(name: str, record: state.Record | None, fixed: bool) -> dict[str, int]:
    """Fixed ports, else those of last time where they are free, else free ones."""
    wanted = RECIPES[name].ports
    if fixed:
        for purpose, port in wanted.items():
            if not is_free(port):
                raise Unavailable(
                    name, f"port {port} ({purpose}) is taken: end what listens there, or let ports be chosen"
                )
        return dict(wanted)
    if record and record.ports.keys() == wanted.keys() and all(is_free(port) for port in record.ports.values()):
        return record.ports
    return {purpose: free_port() for purpose in wanted}


def _known(names: Iterable[str] | None) -> list[str]:
    chosen = list(dict.fromkeys(NAMES if names is None else names))
    if unknown := [name for name in chosen if name not in RECIPES]:
        raise ValueError(f"unknown broker {unknown[0]!r}: there are {', '.join(NAMES)}")
    return chosen


def _home(state_dir: Path | str | None) -> Path:
    return Path(state_dir).absolute() if state_dir else state.default_state()

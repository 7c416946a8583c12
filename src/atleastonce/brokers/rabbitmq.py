"""RabbitMQ with its management plugin, from the distribution's packages, run in place by an ordinary user.

`ALO_RABBITMQ_FLAVOUR` chooses another version: `4.0` and `4.3` are those of Debian trixie and forky, which root alone can
run elsewhere. A server that runs already is not exchanged: end it first.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import debian, other_debian, ready
from .cache import install_once
from .model import HOST, Command, Image, NotReady, Place, Recipe, Unavailable
from .progress import Progress

VARIABLE = "ALO_RABBITMQ_FLAVOUR"
SUITES = {"4.0": "trixie", "4.3": "forky"}
PORTS = {"main": 5672, "management": 15672, "dist": 25672, "epmd": 4369}

# Below the disk limit RabbitMQ blocks every publisher; its default (50 MB) is stated so that no packager's differs.
# Above the memory watermark it blocks them too: 1 GiB is far from what a test needs, and far from filling a laptop.
SETTINGS = """\
listeners.tcp.default = {host}:{main}
management.tcp.ip = {host}
management.tcp.port = {management}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GiB
loopback_users = none
log.console = true
log.console.level = info
log.file = false
"""


def install(progress: Progress) -> Path:
    """Erlang and RabbitMQ unpacked into the cache. Raises `Unavailable` where there is no apt."""
    flavour = os.environ.get(VARIABLE, "").strip()
    if flavour in SUITES:
        return other_debian.install("rabbitmq", "rabbitmq-server", SUITES[flavour], progress)
    if flavour not in ("", "distribution"):
        raise Unavailable("rabbitmq", f"{VARIABLE} is {flavour!r}: expected distribution, {', '.join(SUITES)}")

    def build(folder: Path) -> None:
        debian.unpack("rabbitmq", "rabbitmq-server", ("erlang-", "rabbitmq-"), folder, progress)
        # Erlang's start scripts name the place where the package would have been installed.
        erlang = folder / "usr" / "lib" / "erlang"
        here = 'ROOTDIR=$(readlink -f "$0"); ROOTDIR=${ROOTDIR%/*/*}'
        for script in [erlang / "bin" / "erl", erlang / "bin" / "start", *erlang.glob("erts-*/bin/erl")]:
            text = script.read_text() if script.exists() else ""
            up = here if script.parent.parent == erlang else here.replace("%/*/*", "%/*/*/*")
            if "ROOTDIR=/usr/lib/erlang" in text:
                script.unlink()  # perhaps a link to a file outside
                script.write_text(text.replace("ROOTDIR=/usr/lib/erlang", up))
                script.chmod(0o755)
        _home(folder)

    return install_once(f"rabbitmq-{debian.release()}", build)


def prepare(install: Path, place: Place) -> Command:
    """Write the settings; the node makes its data directory itself."""
    (place.directory / "rabbitmq.conf").write_text(SETTINGS.format(host=HOST, **place.ports))
    (place.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    home = _home(install)
    if (install / "etc" / "debian_version").exists():  # a whole system, seen from within
        home, at = Path("/") / home.relative_to(install), Path(other_debian.INSIDE)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **_environment(home, at, place)}
        argv = other_debian.enter(install, place.directory, [str(home / "sbin" / "rabbitmq-server")])
        return Command(argv, env, str(place.directory), grace=20)
    erlang = install / "usr" / "lib" / "erlang"
    libraries = [str(path) for path in sorted(install.glob("usr/lib/*-linux-*"))]
    env = {
        "PATH": f"{erlang / 'bin'}:{os.defpath}:/usr/sbin:/sbin",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "ERLANG_HOME": str(erlang),
        **_environment(home, place.directory, place),
    }
    return Command([str(home / "sbin" / "rabbitmq-server")], env, str(place.directory), grace=20)


def _environment(home: Path, at: Path, place: Place) -> dict[str, str]:
    return {
        "LANG": "C.UTF-8",
        "HOME": str(at),  # the Erlang cookie
        "RABBITMQ_HOME": str(home),
        "RABBITMQ_NODENAME": "atleastonce@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(place.port),
        "RABBITMQ_DIST_PORT": str(place.ports["dist"]),
        "ERL_EPMD_PORT": str(place.ports["epmd"]),
        "ERL_EPMD_ADDRESS": HOST,
        "RABBITMQ_MNESIA_BASE": str(at / "data"),
        "RABBITMQ_LOG_BASE": str(at / "logs"),
        "RABBITMQ_PID_FILE": str(at / "pid"),
        "RABBITMQ_SCHEMA_DIR": str(at / "schema"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(at / "generated"),
        "RABBITMQ_CONFIG_FILE": str(at / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(at / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        # Two schedulers that do not spin: a node sized for sixteen cores takes those of the tests.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
        # The script then becomes the Erlang machine and leaves no shell between it and our signals.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _home(install: Path) -> Path:
    found = list(install.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))
    if len(found) != 1:
        raise Unavailable("rabbitmq", "the package of this distribution has an unknown layout")
    return found[0]


def _ready(place: Place) -> None:
    """The management plugin opens after the main port."""
    answer = ready.http(f"{_management(place)}/api/overview", auth=("guest", "guest"))
    if b"rabbitmq_version" not in answer:
        raise NotReady("the management plugin does not answer")


def _management(place: Place) -> str:
    return f"http://{HOST}:{place.ports['management']}"


RECIPE = Recipe(
    name="rabbitmq",
    ports=PORTS,
    image=Image("rabbitmq:4.3.5-management", {"main": 5672, "management": 15672}),
    url=lambda port: f"rabbitmq://guest:guest@{HOST}:{port}/",
    install=install,
    prepare=prepare,
    probe=ready.rabbitmq,
    ready=_ready,
    addresses=lambda place: {"management": _management(place)},
    start_within=90.0,
)

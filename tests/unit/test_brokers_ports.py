"""Ports that a process has handed out, while nothing listens there."""

import subprocess
import sys

from atleastonce.brokers.ports import free_port, reserve

KEEPER = """
from atleastonce.brokers.ports import free_port
print(free_port(), flush=True)
input()
"""


def test_a_port_is_kept_from_other_processes_as_long_as_its_own_lives() -> None:
    """A killed broker has its port unbound until it is started again."""
    with subprocess.Popen([sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        port = int(keeper.stdout.readline())
        assert not reserve(port)
        keeper.kill()
        keeper.wait()
    assert reserve(port)


def test_ports_are_handed_out_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)

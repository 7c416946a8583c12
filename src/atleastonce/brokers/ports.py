"""Ports: free ones below the range from which the kernel takes outgoing ones.

A broker that is killed and comes back must find its port again. A port in the ephemeral range could meanwhile serve
as the local end of some connection, even of a client's attempt to reconnect to this very port.
"""

from __future__ import annotations

import fcntl
import random
import socket
import threading
from pathlib import Path
from typing import IO

from .cache import cache_dir
from .model import HOST, Unavailable

LOWEST = 15000
HIGHEST = 32000
_given: set[int] = set()
_lock = threading.Lock()
_table: IO[bytes] | None = None


def is_free(port: int) -> bool:
    """Whether this port can be bound on the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def reserve(port: int) -> bool:
    """Keep other processes that share our cache from handing out this port as long as this one lives; False where one of them
    keeps it. A broker that is killed, and a proxy that refuses, leave theirs unbound for a while: whoever took it then would
    be taken for them by their clients."""
    global _table
    try:
        if _table is None:
            path = cache_dir() / "locks" / "ports"
            path.parent.mkdir(parents=True, exist_ok=True)
            _table = path.open("ab")
        fcntl.lockf(
            _table, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port
        )  # a byte for each port; the kernel lets go when we end
    except BlockingIOError:
        return False
    except OSError:
        return True  # nothing can be noted here
    return True


def free_port() -> int:
    """A port that nobody has, and that neither this process nor another one that lives has handed out before."""
    highest = min(HIGHEST, _ephemeral_start() - 1)
    if highest <= LOWEST + 1000:
        highest = HIGHEST
    for _ in range(500):
        port = random.randint(LOWEST, highest)
        with _lock:
            if port in _given or not is_free(port) or not reserve(port):
                continue
            _given.add(port)
            return port
    raise Unavailable("ports", f"no free port found between {LOWEST} and {highest}")


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32768


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which these processes listen, from /proc."""
    inodes: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        for fields in (row.split() for row in rows):
            if fields[3] == "0A":
                host, port = fields[1].split(":")
                inodes[fields[9]] = (_address(host), int(port, 16))
    found: set[tuple[str, int]] = set()
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for link in links:
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                found.add(inodes[target[8:-1]])
    return found


def _address(hexadecimal: str) -> str:
    """/proc writes addresses as hexadecimal words in the machine's byte order."""
    raw = b"".join(bytes.fromhex(hexadecimal[at : at + 8])[::-1] for at in range(0, len(hexadecimal), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)

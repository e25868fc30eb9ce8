"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket

# Below what the system gives to connections and to whoever asks for any port: a server that was killed
# finds its port free when it comes back.
_BROKERS, _OTHERS = range(10_000, 20_000), range(20_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    return _free_ports(1, _OTHERS)[0]


def broker_ports(count: int) -> list[int]:
    """As `free_port`, and `free_port` never gives one of these."""
    return _free_ports(count, _BROKERS)


def _free_ports(count: int, among: range) -> list[int]:
    found: list[int] = []
    # Not seeded: runs side by side must not try the same.
    for port in random.SystemRandom().sample(among, len(among)):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"no {count} free ports in {among}")

"""Ports for services of tests."""

import contextlib
import random
import socket


def free_port() -> int:
    """From below those that outgoing connections draw, one of which could take it before it is used."""
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

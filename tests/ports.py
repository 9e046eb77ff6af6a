"""A port for a program that wants to be told one."""

import random
import socket


def free_port() -> int:
    """A port on which nobody listens here, and which a socket that asks for any port is not given meanwhile.

    Systems give such sockets ports from 32768 (Linux) or 49152 on. A port found by asking for any would be free for
    other tests too between this call and the program's start.
    """
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("found no free port among 100 from 20000 to 29999")

"""The test servers by the name of their dataset."""

from cir import data
from cir.errors import InputError, nearest
from cir.submissions.circo import CIRCOServer
from cir.submissions.cirr import CIRRServer
from cir.submissions.server import Server

SERVERS: dict[str, Server] = {"cirr": CIRRServer(), "circo": CIRCOServer()}


def find(name: str) -> Server:
    """Look up a server by its dataset, with or without `world/`; InputError names the nearest."""
    plain = data.dataset(name)
    if plain not in SERVERS:
        raise InputError(f"submit: no test server for {name!r}; {nearest(plain, SERVERS)}")
    return SERVERS[plain]


def benchmark_name(name: str, split: str) -> str:
    """Say which benchmark a dataset's file for `val` or `test` is for.

    >>> benchmark_name("cirr", "test"), benchmark_name("world/circo", "val")
    ('cirr/test1', 'world/circo/val')
    """
    server = find(name)
    if split not in (*server.splits, *server.splits.values()):
        raise InputError(f"submit: {name} has no split {split!r}; expected {' or '.join(server.splits)}")
    world = data.WORLD if name.startswith(data.WORLD) else ""
    return f"{world}{server.id}/{server.splits.get(split, split)}"

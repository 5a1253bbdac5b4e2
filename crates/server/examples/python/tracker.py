"""Shared by session.py and watch.py: the command line, the connection, and when to connect again."""

import argparse
import asyncio
import pathlib
import random
import sys
import uuid

import grpc

# A new connection after any of these. Any other status means that the same call would fail again.
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}
# Without pings, a client does not notice that the tracker's machine is gone. Milliseconds.
OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]
# Seconds.
LONGEST_PAUSE = 30


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addr", default="127.0.0.1:3029", help="the tracker, HOST:PORT")
    parser.add_argument("--ca-file", type=pathlib.Path, help="PEM file with the authorities to trust; connects over TLS")
    return parser


def connect(args):
    if args.ca_file is None:
        return grpc.aio.insecure_channel(args.addr, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(args.ca_file.read_bytes())
    return grpc.aio.secure_channel(args.addr, credentials, options=OPTIONS)


async def repeat(stream):
    """Runs streams until one ends without an error.

    `stream` is called with a function to call once its stream works. The pauses between streams grow, and are random:
    after a restart of the tracker, not all clients connect at once.
    """
    pause = 1

    def works():
        nonlocal pause
        pause = 1

    while True:
        try:
            return await stream(works)
        except grpc.aio.AioRpcError as error:
            if error.code() not in TRANSIENT:
                raise
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        await asyncio.sleep(random.uniform(0, pause))
        pause = min(2 * pause, LONGEST_PAUSE)


def main(run):
    try:
        asyncio.run(run)
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
    except KeyboardInterrupt:
        pass


def as_uuid(name):
    """The 16 bytes of a hyphenated UUID; None for any other name."""
    try:
        node = uuid.UUID(name)
    except ValueError:
        return None
    return node.bytes if str(node) == name.lower() else None


def node_ids(nodes):
    """The fields of a NodeIds, and the nodes in the order of its positions: UUIDs first."""
    uuids = {node: as_uuid(node) for node in nodes}
    in_order = sorted(nodes, key=lambda node: uuids[node] is None)
    fields = {
        "uuids": b"".join(uuids[node] for node in in_order if uuids[node]),
        "names": [node for node in in_order if not uuids[node]],
    }
    return fields, in_order

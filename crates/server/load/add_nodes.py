#!/usr/bin/env python3
"""RFD 47's load test, from a client that is not ours: N AddNode calls over 10 connections, each status checked.

    pip install grpcio
    add_nodes.py [--addr 127.0.0.1:3029] [--calls 1000000] [--nodes 1000000] [--connections 10] [--pid SERVER]

Every call names the next of NODES nodes, through one of 1,000 proxies. It prints the rate, the slowest calls and the
status codes, and with --pid (Linux) the server's resident memory before and after.
"""

import argparse
import collections
import multiprocessing
import os
import threading
import time
import uuid

import grpc

PROXIES = 1000
IN_FLIGHT = 64


def field(number, text):
    data = text.encode()
    return bytes([number << 3 | 2, len(data)]) + data


def add_node(node):
    """An api.AddNodeRequest, encoded by hand so that nothing has to be generated."""
    proxy = node % PROXIES
    return (
        field(1, str(uuid.uuid5(uuid.NAMESPACE_OID, str(node))))
        + field(2, str(uuid.uuid5(uuid.NAMESPACE_DNS, str(proxy))))
        + field(3, "cluster")
        + field(4, f"10.0.{proxy // 250}.{proxy % 250 + 1}:3080")
    )


def connection(addr, calls, results):
    """Makes the calls over one connection, IN_FLIGHT at a time."""
    channel = grpc.insecure_channel(addr, options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary("/api.NodeTrackerService/AddNode")
    places = threading.Semaphore(IN_FLIGHT)
    codes = collections.Counter()
    latencies = []

    def done(future, started):
        codes[future.code().name] += 1
        latencies.append(time.perf_counter() - started)
        places.release()

    for node in calls:
        places.acquire()
        started = time.perf_counter()
        future = call.future(add_node(node), timeout=30)
        future.add_done_callback(lambda future, started=started: done(future, started))
    for _ in range(IN_FLIGHT):
        places.acquire()
    channel.close()
    results.put((codes, sorted(latencies)[-max(1, len(latencies) // 100):]))


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addr", default="127.0.0.1:3029")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--pid", type=int)
    args = parser.parse_args()

    before = resident(args.pid) if args.pid else None
    results = multiprocessing.Queue()
    started = time.perf_counter()
    workers = []
    for number in range(args.connections):
        calls = [call % args.nodes for call in range(number, args.calls, args.connections)]
        workers.append(multiprocessing.Process(target=connection, args=(args.addr, calls, results)))
        workers[-1].start()
    codes, slowest = collections.Counter(), []
    for _ in workers:
        more, tail = results.get()
        codes.update(more)
        slowest += tail
    elapsed = time.perf_counter() - started
    for worker in workers:
        worker.join()

    slowest.sort()
    print(f"{args.calls:,} calls over {args.connections} connections in {elapsed:.1f} s: {args.calls / elapsed:,.0f}/s")
    print(f"99 % within {slowest[0] * 1e3:.1f} ms, all within {slowest[-1] * 1e3:.1f} ms (the client's own time included)")
    print("status:", ", ".join(f"{code} {count:,}" for code, count in codes.most_common()))
    if before is not None:
        after = resident(args.pid)
        grown = (after - before) * 1024 / min(args.calls, args.nodes)
        print(f"server's resident memory: {before:,} KiB before, {after:,} KiB after: {grown:.0f} bytes per node")
    raise SystemExit(0 if codes["OK"] == args.calls else 1)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    main()

#!/usr/bin/env python3
"""A proxy's session with the tracker: announces nodes, and refreshes their routes until Ctrl-C.

    session.py [--addr HOST:PORT] PROXY_ID PROXY_ADDR [NODE...]

Lines of the standard input, `up NODE` and `down NODE`, open and close tunnels.
"""

import asyncio
import signal
import sys
import threading
import time

import grpc
import tracker
from nodetracker.v1 import session_pb2, session_pb2_grpc, types_pb2

HANDLE = 8
# The most bytes of a name in a message: 255, its tag and its length.
NAME = 258
# Seconds that a drain may take.
DRAIN = 5


class Proxy:
    """The nodes with a tunnel to this proxy, and the tracker's handles for them; both outlive a session."""

    def __init__(self, proxy):
        self.proxy = proxy
        # Grows with each start of this process, and stays the same when it connects again.
        self.incarnation = time.time_ns()
        self.generation = 0
        self.nodes = set()
        self.handles = {}
        # Nodes without a tunnel, whose routes the tracker may still have.
        self.closed = set()
        self.stopping = False
        self.wake = asyncio.Event()

    def up(self, node):
        self.nodes.add(node)
        self.closed.discard(node)
        self.wake.set()

    def down(self, node):
        self.nodes.discard(node)
        self.handles.pop(node, None)
        self.closed.add(node)
        self.wake.set()

    def stop(self):
        self.stopping = True
        self.wake.set()


class Superseded(Exception):
    """Another process is this proxy now, or an operator has removed the proxy."""


class Session:
    """One stream. Each request waits for its answer."""

    def __init__(self, proxy, call):
        self.proxy = proxy
        self.call = call
        self.sequence = 0
        self.answers = {}
        self.interval = None
        self.limits = None

    async def request(self, **request):
        self.sequence += 1
        answer = self.answers[self.sequence] = asyncio.get_running_loop().create_future()
        try:
            await self.call.write(session_pb2.SessionRequest(sequence=self.sequence, **request))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended. Its reader gets the status, and ends the session.
            pass
        return await answer

    async def read(self):
        """Hands out the answers until the stream ends. The end is an exception, except after a drain."""
        async for response in self.call:
            if response.HasField("superseded"):
                reason = session_pb2.SessionSupersededReason.Name(response.superseded.reason)
                raise Superseded(f"superseded: {reason}")
            if response.HasField("go_away"):
                # A client that knows another tracker begins a session there. This client connects again after the end.
                print("the tracker is about to stop", file=sys.stderr)
            elif response.HasField("keep_alive"):
                # Heartbeats are answer enough.
                pass
            else:
                self.answers.pop(response.sequence).set_result(response)

    async def hello(self):
        proxy = self.proxy
        response = await self.request(
            hello=session_pb2.SessionHello(
                proxy=proxy.proxy,
                incarnation=proxy.incarnation,
                generation=proxy.generation,
                has_handles=bool(proxy.handles),
            )
        )
        welcome = response.welcome
        # They do not hold if the tracker has restarted.
        if not welcome.handles_hold:
            proxy.handles.clear()
        proxy.generation = welcome.generation
        self.interval = welcome.heartbeat_interval.ToTimedelta().total_seconds()
        self.limits = welcome.limits

    async def announce(self):
        """Announces the nodes without a handle."""
        proxy = self.proxy
        missing = [node for node in proxy.nodes if node not in proxy.handles]
        for nodes in chunks(missing, self.limits.max_nodes, NAME, self.limits):
            fields, nodes = tracker.node_ids(nodes)
            response = await self.request(nodes_up={"nodes": fields})
            handles = split(response.handles.handles)
            for node, handle in zip(nodes, handles):
                # The tunnel may have closed in the meantime.
                if node in proxy.nodes:
                    proxy.handles[node] = handle
            if len(handles) < len(nodes):
                # The next heartbeat announces them again.
                refusal = session_pb2.SessionRefusal.Name(response.handles.refusal)
                print(f"{len(nodes) - len(handles)} nodes refused: {refusal}", file=sys.stderr)
                return

    async def withdraw(self):
        """Removes the routes of nodes that have no tunnel any more."""
        for nodes in chunks(list(self.proxy.closed), self.limits.max_nodes, NAME, self.limits):
            fields, nodes = tracker.node_ids(nodes)
            await self.request(nodes_down={"nodes": fields})
            self.proxy.closed.difference_update(nodes)

    async def heartbeat(self):
        """Refreshes each route. Nodes whose handles are gone lose them, and so are announced again."""
        handles = self.proxy.handles
        nodes_of = {handle: node for node, handle in handles.items()}
        # A heartbeat without handles keeps the session.
        for some in chunks(list(nodes_of), self.limits.max_handles, HANDLE, self.limits) or [[]]:
            response = await self.request(heartbeat={"handles": b"".join(some)})
            if response.HasField("resync"):
                handles.clear()
                return
            for handle in split(response.ack.gone_handles):
                node = nodes_of[handle]
                if handles.get(node) == handle:
                    del handles[node]
            if response.ack.HasField("heartbeat_interval"):
                self.interval = response.ack.heartbeat_interval.ToTimedelta().total_seconds()

    async def run(self, works):
        proxy = self.proxy
        await self.hello()
        works()
        print(f"session with tracker {proxy.generation:016x}, {len(proxy.handles)} handles hold", flush=True)
        # Handles of an earlier session may be due for long.
        due = time.monotonic()
        while not proxy.stopping:
            proxy.wake.clear()
            await self.withdraw()
            if time.monotonic() >= due:
                begun = time.monotonic()
                await self.heartbeat()
                due = begun + self.interval
            await self.announce()
            print(f"{len(proxy.handles)} of {len(proxy.nodes)} nodes are with the tracker", flush=True)
            try:
                await asyncio.wait_for(proxy.wake.wait(), due - time.monotonic())
            except asyncio.TimeoutError:
                pass
        # Without a drain, the routes would stay until they expire.
        await self.request(drain={})
        print("drained", flush=True)


def chunks(items, most, size, limits):
    """Splits items of up to `size` bytes into lists that fit into messages."""
    most = min(most, (limits.max_message_bytes - 64) // size)
    return [items[at : at + most] for at in range(0, len(items), most)]


def split(handles):
    return [handles[at : at + HANDLE] for at in range(0, len(handles), HANDLE)]


async def stream(stub, proxy, works):
    """Runs a session until a drain, or until its stream ends."""
    call = stub.Session()
    session = Session(proxy, call)
    reader = asyncio.create_task(session.read())
    worker = asyncio.create_task(session.run(works))
    try:
        done, _ = await asyncio.wait({reader, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker in done:
            await worker
        await reader
        await worker
    finally:
        reader.cancel()
        worker.cancel()
        call.cancel()


def read_commands(loop, proxy):
    for line in sys.stdin:
        match line.split():
            case ["up", node]:
                loop.call_soon_threadsafe(proxy.up, node)
            case ["down", node]:
                loop.call_soon_threadsafe(proxy.down, node)
            case _:
                print("expected: up NODE, or down NODE", file=sys.stderr)


async def main():
    parser = tracker.arguments(__doc__)
    parser.add_argument("proxy_id")
    parser.add_argument("proxy_addr", help="where other proxies reach this proxy, HOST:PORT")
    parser.add_argument("node", nargs="*", help="a node with a tunnel to this proxy")
    parser.add_argument("--cluster", default="")
    args = parser.parse_args()
    proxy = Proxy(types_pb2.Proxy(proxy_id=args.proxy_id, cluster_name=args.cluster, addr=args.proxy_addr))
    proxy.nodes.update(args.node)

    loop = asyncio.get_running_loop()
    threading.Thread(target=read_commands, args=(loop, proxy), daemon=True).start()
    stopping = asyncio.Event()

    def stop():
        proxy.stop()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with tracker.connect(args) as channel:
        stub = session_pb2_grpc.SessionServiceStub(channel)
        sessions = asyncio.create_task(tracker.repeat(lambda works: stream(stub, proxy, works)))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({sessions, stopped}, return_when=asyncio.FIRST_COMPLETED)
        try:
            await asyncio.wait_for(sessions, DRAIN)
        except asyncio.TimeoutError:
            sys.exit("the tracker cannot be reached: the routes stay until they expire")
        except Superseded as superseded:
            # A new process of this proxy has taken over, or may begin with a greater incarnation.
            sys.exit(str(superseded))


if __name__ == "__main__":
    tracker.main(main())

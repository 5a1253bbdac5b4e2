#!/usr/bin/env python3
"""A copy of the tracker's table, or of some nodes, kept up to date until Ctrl-C.

    watch.py [--addr HOST:PORT] [NODE...]
"""

import tracker
from nodetracker.v1 import watch_pb2, watch_pb2_grpc


class Copy:
    """The routes of each node, and the proxies by registration: a proxy that is removed and comes back has another."""

    def __init__(self):
        self.proxies = {}
        self.routes = {}

    def get_proxies(self, node):
        """The proxies of a node, most recently refreshed first, as of the last change."""
        return [self.proxies[registration] for registration in self.routes.get(node, [])]

    def set_proxy(self, watched):
        # A known proxy may have another address, which applies to all its routes.
        self.proxies[watched.registration] = watched.proxy

    def set_routes(self, node, proxies):
        """Takes over the routes of a node in a message with these proxies. Returns the node's name."""
        name = node_name(node.node)
        proxies = [proxies[route.proxy_index] for route in node.routes]
        for watched in proxies:
            self.set_proxy(watched)
        if proxies:
            self.routes[name] = [watched.registration for watched in proxies]
        else:
            self.routes.pop(name, None)
        return name

    def remove_proxy(self, registration):
        """The tracker need not send a change of each node of a removed proxy."""
        self.proxies.pop(registration, None)
        for node, routes in list(self.routes.items()):
            if registration in routes:
                routes.remove(registration)
                if not routes:
                    del self.routes[node]

    def apply(self, changes):
        """Applies changes, and yields a line for each."""
        for change in changes.changes:
            match change.WhichOneof("change"):
                case "node":
                    node = self.set_routes(change.node.routes, changes.proxies)
                    reason = watch_pb2.NodeChangeReason.Name(change.node.reason)
                    yield reason, node, [proxy.proxy_id for proxy in self.get_proxies(node)]
                case "proxy":
                    watched = change.proxy.proxy
                    if change.proxy.reason == watch_pb2.PROXY_CHANGE_REASON_REMOVED:
                        self.remove_proxy(watched.registration)
                    else:
                        self.set_proxy(watched)
                    reason = watch_pb2.ProxyChangeReason.Name(change.proxy.reason)
                    yield reason, watched.proxy.proxy_id, watched.proxy.addr
                # A kind of change that a newer tracker sends is left out.


def node_name(node):
    return str(tracker.uuid.UUID(bytes=node.uuid)) if node.HasField("uuid") else node.name


class Watch:
    """A copy that look-ups can use at any time: a new snapshot replaces it once the snapshot is complete."""

    def __init__(self, nodes):
        fields, _ = tracker.node_ids(nodes)
        self.request = watch_pb2.WatchRequest(nodes=fields)
        self.copy = Copy()

    async def stream(self, stub, works):
        """Follows one stream. Each stream begins with a snapshot, so nothing is asked for that was missed."""
        snapshot = Copy()
        async for response in stub.Watch(self.request):
            match response.WhichOneof("message"):
                case "snapshot":
                    for node in response.snapshot.nodes:
                        snapshot.set_routes(node, response.snapshot.proxies)
                case "snapshot_end":
                    works()
                    self.copy = snapshot
                    generation = response.snapshot_end.generation
                    print(f"snapshot of tracker {generation:016x}: {len(self.copy.routes)} nodes", flush=True)
                case "changes":
                    for change in self.copy.apply(response.changes):
                        print(*change, flush=True)
                case "lost_place":
                    # This client was too slow. A new snapshot follows.
                    snapshot = Copy()
                    print("lost place", flush=True)
        raise ConnectionError("the tracker ended the watch with OK, which it never does")


async def main():
    parser = tracker.arguments(__doc__)
    parser.add_argument("node", nargs="*", help="watch only these nodes")
    args = parser.parse_args()
    watch = Watch(args.node)
    async with tracker.connect(args) as channel:
        stub = watch_pb2_grpc.WatchServiceStub(channel)
        await tracker.repeat(lambda works: watch.stream(stub, works))


if __name__ == "__main__":
    tracker.main(main())

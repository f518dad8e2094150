"""What one viewer of the page is told, as events of text: the map whole, then what changed; lists once a second.

A viewer has one `News`, read by one thread. It holds a stream of the operators' door, and nothing of the map itself.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from cluster.errors import QuireError
from cluster.serving.admin_client import Admin, plain
from protos.quire.v1 import admin_pb2 as pb

MAP_S = 0.1
LISTS_S = 1.0
MAX_LISTED = 400
MAX_WAITING = 64
"""Events that a viewer has not taken: behind that it begins anew."""

_STATES = {number: name.removeprefix("REQUEST_STATE_").lower() for name, number in pb.RequestState.items()}
# A state's byte as the digit that the page reads.
_DIGITS = bytes([48 + state % 10 for state in range(256)])


class News:
    def __init__(self, admin: Admin, *, can_play: bool = False) -> None:
        self._admin = admin
        self._can_play = can_play
        self._events: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._ended = threading.Event()
        self._watch: Any = None

    def events(self) -> Iterator[str]:
        """Until `close`, the door's end, or a viewer that takes nothing. An empty one: nothing for a while."""
        for work in (self._follow_map, self._follow_lists):
            threading.Thread(target=work, daemon=True).start()
        while not self._ended.is_set() or not self._events.empty():
            try:
                yield self._events.get(timeout=1.0)
            except queue.Empty:
                yield ""

    def close(self) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.cancel()

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        try:
            self._events.put_nowait(f"event: {kind}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n")
        except queue.Full:
            self.close()

    def _follow_map(self) -> None:
        try:
            asked = pb.WatchBlocksRequest(interval_s=MAP_S, with_owners=True)
            self._watch = self._admin.stub.WatchBlocks(asked)
            for response in self._watch:
                if self._ended.is_set():
                    return
                self._tell("map", {"pools": [_pool(part) for part in response.pools], "gone": list(response.gone)})
        except grpc.RpcError as error:
            if not self._ended.is_set():
                self._tell("lost", {"why": str(self._admin.error(error))})
        finally:
            self.close()

    def _follow_lists(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._tell("lists", self._lists())
            except QuireError as error:
                self._tell("lost", {"why": str(error)})
                self.close()
            self._ended.wait(max(0.0, LISTS_S - (time.monotonic() - began)))

    def _lists(self) -> dict[str, Any]:
        call = self._admin.call
        cluster = call("GetCluster", pb.GetClusterRequest())
        listed = call("ListRequests", pb.ListRequestsRequest(limit=MAX_LISTED))
        usage = call("GetUsage", pb.GetUsageRequest())
        done = sum(tenant.output_tokens for tenant in usage.tenants)
        return {
            "version": cluster.version,
            "running": cluster.num_running,
            "waiting": cluster.num_waiting,
            "tokens": done + sum(one.output_tokens for one in listed.requests),
            "can_play": self._can_play,
            "left_out": listed.num_left_out,
            "requests": [_request(one) for one in listed.requests],
            "workers": plain(call("ListWorkers", pb.ListWorkersRequest()))["workers"],
            "tenants": [plain(tenant) for tenant in usage.tenants],
            "notes": [[note.number, round(note.age_s, 1), note.kind, note.subject, note.why] for note in cluster.notes],
            "pools": {
                pool.name: pool.kind == pb.POOL_KIND_HOST for pool in call("ListPools", pb.ListPoolsRequest()).pools
            },
        }

    def tables(self, request_id: str) -> dict[str, Any]:
        return plain(self._admin.call("DescribeRequest", pb.DescribeRequestRequest(request_id=request_id)))


def _pool(part: pb.PoolMap) -> dict[str, Any]:
    """States as a digit a block; owners as numbers into `requests`, from 1."""
    told: dict[str, Any] = {"pool": part.pool, "states": part.states.translate(_DIGITS).decode()}
    if part.whole:
        told["whole"] = True
    else:
        told["blocks"] = list(part.blocks)
    return {**told, "owners": list(part.owners), "requests": list(part.requests)}


def _request(one: pb.RequestSummary) -> list[Any]:
    return [
        *(one.request_id, one.tenant, _STATES[one.state], one.worker, one.prompt_tokens, one.output_tokens),
        *(one.num_blocks, one.reason),
    ]

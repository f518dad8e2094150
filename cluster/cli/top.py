"""`quire top`: the cluster live, every pool as a map of blocks coloured by state, or by request.

Reads the operators' door: WatchBlocks for the maps (whole once, then what changed), the lists for the figures; and the
metrics port for what only gateways know. In a pipe, or with --once, it prints one picture and ends.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.centre.notes import Note
from cluster.cli.admin import AddressOption, TokenOption, open_admin
from cluster.cli.table_lines import table_lines
from cluster.cli.top_picture import PoolPicture, Scene, draw, listed
from cluster.cli.top_view import TABLES, View
from cluster.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from cluster.serving.admin_client import Admin

MAX_LISTED = 200
AGAIN_S = 1.0
"""Between two tries to reach a scheduler that is away."""
_SUM = re.compile(r"^quire_(time_to_first_token|inter_token)_seconds_(sum|count)\{.*\} (\S+)$", re.MULTILINE)


def register(app: typer.Typer) -> None:
    app.command()(top)


def top(
    address: AddressOption = None,
    token_file: TokenOption = None,
    interval: Annotated[float, typer.Option(help="Seconds between pictures.")] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="One picture, then end.")] = False,
    by_request: Annotated[bool, typer.Option("--by-request", help="Colour blocks by request. Key: r.")] = False,
) -> None:
    """Watch requests, speeds, queues and the memory map live.

    Enter: a request's tables; ?: the keys; q: leave.
    """
    from rich.console import Console
    from rich.live import Live

    interval = max(0.1, interval)
    view = View(by_request=by_request)
    eyes, console = Eyes(open_admin(address, token_file), interval, has_figures=address is None), Console()
    try:
        if once or not sys.stdout.isatty():
            # Rates need two looks.
            eyes.look(view)
            time.sleep(interval)
            console.print(draw(eyes.look(view), console.width, not console.is_terminal, view))
            return
        scene = eyes.look(view)
        with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as key:
            while True:
                live.update(draw(scene, console.width, False, view, console.height), refresh=True)
                pressed = key(interval)
                if pressed == "q":
                    return
                view = view.press(pressed, [one["id"] for one in listed(scene.requests, view)])
                try:
                    scene = eyes.look(view)
                except (Unavailable, DeadlineExceeded) as error:
                    # The scheduler may be starting again: what was seen last stays, and says of itself that it is old.
                    scene.away = str(error)
    except KeyboardInterrupt:
        return
    finally:
        eyes.close()


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits for a key: the key, or "" when the time is over."""
    if not sys.stdin.isatty():

        def nothing(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield nothing
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin.fileno())

    def key(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        # Arrows are several bytes, which come together.
        return os.read(sys.stdin.fileno(), 16).decode(errors="replace") if ready else ""

    try:
        yield key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Eyes:
    """Fetches what a picture is drawn from, and remembers what rates are made of."""

    def __init__(self, admin: Admin, interval_s: float, *, has_figures: bool) -> None:
        """`has_figures`: gateways' own are to be had at the metrics port of this user's cluster."""
        self._admin = admin
        self._maps = BlockMaps(self._admin, interval_s)
        self._maps.has_come.wait(5.0)
        # When, tokens so far, turns' microseconds so far.
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=8)
        self._gateways = GatewaySums() if has_figures else None

    def close(self) -> None:
        self._maps.close()

    def look(self, view: View) -> Scene:
        from protos.quire.v1 import admin_pb2 as pb

        call = self._admin.call
        cluster = call("GetCluster", pb.GetClusterRequest())
        pools = {pool.name: pool for pool in call("ListPools", pb.ListPoolsRequest()).pools}
        listed = call("ListRequests", pb.ListRequestsRequest(limit=MAX_LISTED)).requests
        sums = self._gateways.read() if self._gateways is not None else None
        finished = sum(tenant.output_tokens for tenant in call("GetUsage", pb.GetUsageRequest()).tenants)
        # Of gateways' streams where they tell, else of what workers reported, which comes block by block.
        tokens = finished + sum(one.output_tokens for one in listed) if sums is None else sums.num_tokens
        turn_us = cluster.counters["turn microseconds"]
        self._seen.append((time.monotonic(), float(tokens), float(turn_us)))
        head = {
            "version": cluster.version,
            "workers": cluster.num_workers,
            "running": cluster.num_running,
            "waiting": cluster.num_waiting,
            "turn_us": turn_us / max(1, cluster.counters["turns"]),
            "share": self._rate(2) / 1e6,
        }
        return Scene(
            head=head,
            tokens_per_s=self._rate(1),
            first_ms=None if sums is None else sums.first_ms,
            gap_ms=None if sums is None else sums.gap_ms,
            pools=[_pool(name, *known, pools[name]) for name, known in self._maps.snapshot() if name in pools],
            workers=call("ListWorkers", pb.ListWorkersRequest()).workers,
            requests=[_request(one) for one in sorted(listed, key=lambda one: one.state)],
            notes=[Note(one.number, one.age_s, one.kind, one.subject, one.why) for one in cluster.notes],
            counters=dict(cluster.counters),
            tables=self._tables(view.chosen) if view.screen == TABLES else (),
        )

    def _tables(self, request: str) -> list[str]:
        """None once it has ended."""
        from cluster.errors import NotFound
        from cluster.serving.admin_client import plain
        from protos.quire.v1 import admin_pb2 as pb

        try:
            asked = pb.DescribeRequestRequest(request_id=request)
            return table_lines(plain(self._admin.call("DescribeRequest", asked)))
        except NotFound:
            return []

    def _rate(self, which: int) -> float:
        """Growth a second over the last pictures."""
        first, last = self._seen[0], self._seen[-1]
        return max(0.0, last[which] - first[which]) / (last[0] - first[0]) if last[0] > first[0] else 0.0


def _pool(name: str, states: bytes, owners: list[str], pool: Any) -> PoolPicture:
    return PoolPicture(name, states, owners, pool.num_free, pool.num_cached)


def _request(one: Any) -> dict[str, Any]:
    from protos.quire.v1 import admin_pb2 as pb

    state = pb.RequestState.Name(one.state).removeprefix("REQUEST_STATE_").lower()
    figures = {"output": one.output_tokens, "blocks": one.num_blocks, "queue_s": one.queue_s}
    return {"id": one.request_id, "state": state, "worker": one.worker, "reason": one.reason, **figures}


class GatewaySums:
    """First-token and inter-token times of all gateways, from the metrics port, as means over the last pictures."""

    def __init__(self) -> None:
        self._seen: deque[dict[str, float]] = deque(maxlen=8)
        self.num_tokens = 0.0
        self.first_ms: float | None = None
        self.gap_ms: float | None = None

    def read(self) -> GatewaySums | None:
        from cluster.lifecycle.running import Running
        from cluster.watching.doctor import metrics_text

        running = Running.load()
        text = metrics_text(running) if running is not None else ""
        if not text:
            return None
        sums: dict[str, float] = {}
        for name, part, value in _SUM.findall(text):
            sums[f"{name} {part}"] = sums.get(f"{name} {part}", 0.0) + float(value)
        self._seen.append(sums)
        self.num_tokens = sums.get("time_to_first_token count", 0.0) + sums.get("inter_token count", 0.0)
        self.first_ms, self.gap_ms = self._mean("time_to_first_token"), self._mean("inter_token")
        return self

    def _mean(self, name: str) -> float | None:
        first, last = self._seen[0], self._seen[-1]
        grown = {part: last.get(f"{name} {part}", 0.0) - first.get(f"{name} {part}", 0.0) for part in ("sum", "count")}
        return 1e3 * grown["sum"] / grown["count"] if grown["count"] > 0 else None


class BlockMaps:
    """The states and holders of all blocks of all pools, kept up to date by WatchBlocks on a thread of its own."""

    def __init__(self, admin: Admin, interval_s: float) -> None:
        self._pools: dict[str, tuple[bytearray, list[str]]] = {}
        self._lock = threading.Lock()
        self._admin = admin
        self._interval_s = interval_s
        self._call: Any = None
        self._is_closed = threading.Event()
        self.has_come = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def snapshot(self) -> list[tuple[str, tuple[bytes, list[str]]]]:
        with self._lock:
            return [(name, (bytes(states), list(owners))) for name, (states, owners) in self._pools.items()]

    def _run(self) -> None:
        """One call after the other: a scheduler that was started again begins with whole maps."""
        import grpc

        from protos.quire.v1 import admin_pb2 as pb

        request = pb.WatchBlocksRequest(interval_s=self._interval_s, with_owners=True)
        while not self._is_closed.is_set():
            is_first = True
            try:
                self._call = self._admin.stub.WatchBlocks(request)
                for response in self._call:
                    with self._lock:
                        if is_first:
                            self._pools.clear()
                        self._take(response)
                    is_first = False
                    self.has_come.set()
            except grpc.RpcError:
                self.has_come.set()
            self._is_closed.wait(AGAIN_S)

    def _take(self, response: Any) -> None:
        for part in response.pools:
            names = ["", *part.requests]
            owners = [names[number] for number in part.owners]
            if part.whole:
                self._pools[part.pool] = bytearray(part.states), owners
                continue
            states, holders = self._pools[part.pool]
            for block, state, owner in zip(part.blocks, part.states, owners, strict=True):
                states[block], holders[block] = state, owner
        for name in response.gone:
            self._pools.pop(name, None)

    def close(self) -> None:
        self._is_closed.set()
        if self._call is not None:
            self._call.cancel()

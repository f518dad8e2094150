"""The page in a real browser, before an operators' door with 10,000 blocks and 400 requests that change on and on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import grpc
import pytest

from cluster.gateway.settings import GatewaySettings
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.page_process import end_page, start_page
from cluster.lifecycle.running import Running
from cluster.page.news import News
from cluster.page.play import Gateways
from cluster.page.serve import MAX_VIEWERS, Page, server_of
from cluster.serving.admin_client import Admin
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from tests.cluster.front_door import Door, at_the_door, slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NUM_BLOCKS, NUM_REQUESTS, CHANGED = 10_000, 400, 150
REASON = "needs 40 blocks on demo-0, 3 are free beside the reserve"
PICTURES = Path(__file__).parents[2] / "deploy" / "pictures"


class MadeUp:
    """An operators' door: requests come, write, share, move and go, at random."""

    def __init__(self) -> None:
        self.draw = Random(5)
        self.tokens = 0
        self.names = [f"local/{self.draw.getrandbits(48):012x}" for _ in range(NUM_REQUESTS)]
        self.states, self.owners = bytearray(), []
        while len(self.states) < NUM_BLOCKS:
            # Runs of blocks, as tables are.
            owner = self.draw.randrange(NUM_REQUESTS)
            state = self.draw.choices((1, 2, 3, 4), (30, 45, 10, 15))[0]
            for _ in range(self.draw.randint(1, 40)):
                self.states.append(state)
                self.owners.append(owner + 1 if state in (2, 3) else 0)
        self.states, self.owners = self.states[:NUM_BLOCKS], self.owners[:NUM_BLOCKS]

    def GetCluster(self, request: Any, context: Any) -> pb.GetClusterResponse:
        note = pb.Note(number=1, age_s=3, kind="preempted", subject=self.names[0], why=f"swap, {REASON}")
        return pb.GetClusterResponse(version="0", num_running=300, num_waiting=100, num_workers=1, notes=[note])

    def ListWorkers(self, request: Any, context: Any) -> pb.ListWorkersResponse:
        worker = pb.Worker(name="demo-0", model="demo", num_sequences=300, max_batch=400, num_free=900, step_s=0.0123)
        return pb.ListWorkersResponse(workers=[worker])

    def ListPools(self, request: Any, context: Any) -> pb.ListPoolsResponse:
        return pb.ListPoolsResponse(pools=[pb.Pool(name="demo-0", kind=pb.POOL_KIND_DEVICE, num_blocks=NUM_BLOCKS)])

    def ListRequests(self, request: Any, context: Any) -> pb.ListRequestsResponse:
        return pb.ListRequestsResponse(
            requests=[
                pb.RequestSummary(
                    request_id=name,
                    tenant="local",
                    state=pb.REQUEST_STATE_QUEUED if at % 4 == 3 else pb.REQUEST_STATE_RUNNING,
                    worker="demo-0",
                    prompt_tokens=100 + at,
                    output_tokens=self.draw.randint(1, 400),
                    num_blocks=25,
                    reason=REASON if at % 4 == 3 else "",
                )
                for at, name in enumerate(self.names)
            ]
        )

    def GetUsage(self, request: Any, context: Any) -> pb.GetUsageResponse:
        self.tokens += 2_000 + self.draw.randint(-300, 300)
        tenant = pb.TenantUsage(tenant="local", num_requests=400, output_tokens=self.tokens)
        return pb.GetUsageResponse(tenants=[tenant])

    def DescribeRequest(self, request: Any, context: Any) -> pb.DescribeRequestResponse:
        table = pb.SequenceTable(position=40, lease_end=64, pool="<b>demo-0</b>", blocks=[5, 6], holders=[1, 2])
        return pb.DescribeRequestResponse(attempt=1, sequences=[table])

    def WatchBlocks(self, request: pb.WatchBlocksRequest, context: Any) -> Iterator[pb.WatchBlocksResponse]:
        whole = pb.PoolMap(pool="demo-0", whole=True, num_blocks=NUM_BLOCKS, states=bytes(self.states))
        whole.owners.extend(self.owners)
        whole.requests.extend(self.names)
        yield pb.WatchBlocksResponse(pools=[whole])
        host = pb.PoolMap(pool="host-1", whole=True, num_blocks=2_000, states=bytes([1]) * 2_000)
        host.owners.extend([0] * 2_000)
        yield pb.WatchBlocksResponse(pools=[host])
        while context.is_active():
            time.sleep(request.interval_s)
            yield self.swap()
            part = pb.PoolMap(pool="demo-0", blocks=self.draw.sample(range(NUM_BLOCKS), CHANGED))
            new = [self.draw.choices((1, 2, 3, 4, 5, 6), (30, 45, 10, 10, 4, 1))[0] for _ in range(CHANGED)]
            part.states = bytes(new)
            part.requests.extend(self.draw.sample(self.names, 40))
            part.owners.extend([self.draw.randint(1, 40) if state in (2, 3) else 0 for state in new])
            yield pb.WatchBlocksResponse(pools=[part])

    def swap(self) -> pb.WatchBlocksResponse:
        """Some blocks on their way to host memory, and what moved before is there."""
        parts = []
        for pool, num, most in (("demo-0", NUM_BLOCKS, 6), ("host-1", 2_000, 6)):
            part = pb.PoolMap(pool=pool, blocks=self.draw.sample(range(num), most), states=bytes([5] * most))
            part.owners.extend([0] * most)
            parts.append(part)
        return pb.WatchBlocksResponse(pools=parts)

    Drain = CloseModel = None


@pytest.fixture(scope="module")
def admin() -> Iterator[Admin]:
    server = grpc.server(ThreadPoolExecutor(16))
    add_AdminServiceServicer_to_server(MadeUp(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    yield Admin(f"127.0.0.1:{port}", channel, has_tls=False)
    channel.close()
    server.stop(None)


@pytest.fixture(scope="module")
def address(admin: Admin) -> Iterator[str]:
    page = Page(admin)
    listening = socket.create_server(("127.0.0.1", 0))
    server = server_of(page)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/#{page.key}"
    server.should_exit = server.force_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, address: str, **how: Any) -> Any:
    page = browser.new_page(**how)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    page.goto(address)
    until(page, "window.took.length > 3")
    return page


def until(page: Any, holds: str) -> None:
    end = time.monotonic() + 20
    while not page.evaluate(holds):
        assert time.monotonic() < end, holds
        page.wait_for_timeout(20)


def test_the_page_shows_what_the_door_tells(browser: Any, address: str) -> None:
    page = opened(browser, address, viewport={"width": 1280, "height": 900}, color_scheme="light")
    assert page.inner_text("#running") == "300"
    assert page.locator("#requests tbody tr").count() == NUM_REQUESTS
    assert REASON in page.inner_text("#requests")
    assert "preempted local/" in page.inner_text("#notes")
    box = page.locator("figure canvas").first.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 3)
    assert page.inner_text("#told").startswith("demo-0 block ")
    page.focus("figure canvas")
    before = page.inner_text("#told")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#told") != before
    page.keyboard.press("r")
    assert page.get_attribute("#by-request", "aria-pressed") == "true"
    page.locator("#requests tbody tr").first.press("Enter")
    page.wait_for_selector("#tables:not([hidden])")
    until(page, "document.getElementById('tables').textContent.includes('6×2')")
    # What others wrote is text, never markup.
    assert "<b>demo-0</b>" in page.inner_text("#tables")
    assert not page.errors
    page.close()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("light", {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"}),
        ("dark", {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "dark"}),
    ],
)
def test_it_fits_and_is_painted(
    browser: Any, address: str, name: str, how: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With --pictures it makes the README's pictures."""
    page = opened(browser, address, **how)
    if name == "dark":
        page.keyboard.press("r")
    page.wait_for_timeout(3_000)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page is wider than its window"
    colours = page.evaluate(
        """() => { const c = document.querySelector("figure canvas");
        const found = new Set(); const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        for (let at = 0; at < d.length; at += 4) if (d[at + 3] === 255) found.add(d.slice(at, at + 3).join());
        return found.size; }"""
    )
    assert colours >= 6, "the map should show its states"
    folder = PICTURES if request.config.getoption("--pictures") else tmp_path
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"page-{name}.png")
    assert not page.errors
    page.close()


def test_script_and_server_take_little(browser: Any, admin: Admin, address: str) -> None:
    page = opened(browser, address, viewport={"width": 1280, "height": 900})
    page.evaluate("window.took = []")
    page.wait_for_timeout(4_000)
    took = page.evaluate("window.took")
    page.close()
    assert len(took) > 25, "ten updates a second should come"
    assert median(took) < 8.0, f"{median(took):.1f} ms of script for an update"


def test_news_cost_little() -> None:
    """Processor time of making the events alone: the door is in another process, as in a cluster."""
    code = "import tests.page.test_page as t, grpc, sys, time\nt.serve_for(sys.stdin, sys.stdout)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    port = int(child.stdout.readline())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        news = News(Admin(f"127.0.0.1:{port}", channel, has_tls=False))
        events, count = news.events(), 0
        for _ in range(5):
            next(events)
        began, used = time.monotonic(), time.process_time()
        while time.monotonic() < began + 4:
            count += bool(next(events))
        share = (time.process_time() - used) / (time.monotonic() - began)
        news.close()
    child.stdin.close()
    child.wait(20)
    assert count > 25
    assert share < 0.05, f"{share:.1%} of a core"


def serve_for(until: Any, told: Any) -> None:
    """A made-up door in this process until the other end closes."""
    server = grpc.server(ThreadPoolExecutor(8))
    add_AdminServiceServicer_to_server(MadeUp(), server)
    told.write(f"{server.add_insecure_port('127.0.0.1:0')}\n")
    server.start()
    told.flush()
    until.read()
    server.stop(None)


def test_nothing_is_told_without_the_key(address: str) -> None:
    root = address.partition("#")[0]
    with urllib.request.urlopen(root) as answer:
        assert b"<title>Quire</title>" in answer.read()
    for path in ("events", "events?key=x", "tables?request=a", "tables?key=&request=a"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(root + path)
        assert caught.value.code == 403
    for path in ("serve.py", "%2e%2e/serve.py", "page.js/../../serve.py"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(root + path)
        assert caught.value.code == 404


# -- the playground


@pytest.fixture(scope="module")
def playground(admin: Admin) -> Iterator[str]:
    """The page beside a real gateway, before made-up workers, which asks for a token."""
    told: queue.Queue[Any] = queue.Queue()
    over = threading.Event()
    book = TokenBook([TokenEntry(digest_of("good"), Caller("a", frozenset(["inference"])))])

    async def story(door: Door) -> None:
        page = Page(admin, Gateways((door.address,)))
        listening = socket.create_server(("127.0.0.1", 0))
        server = server_of(page)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        told.put(f"http://127.0.0.1:{listening.getsockname()[1]}/#{page.key}")
        await asyncio.to_thread(over.wait)
        server.should_exit = server.force_exit = True
        await asyncio.to_thread(thread.join, 20)
        # Who stopped an answer, or went away, has ended its request.
        await door.settled()

    settings = GatewaySettings(port=0, tokens=book)
    how = {"settings": settings, "timeout_s": 100.0, "shapes": (slow(0.01, end_one_in=1 << 30),)}
    serving = threading.Thread(target=at_the_door, args=(story,), kwargs=how)
    serving.start()
    yield told.get(timeout=20)
    over.set()
    serving.join(30)


def test_answers_come_side_by_side(browser: Any, playground: str, tmp_path: Path) -> None:
    page = opened(browser, playground, viewport={"width": 1280, "height": 900})
    page.wait_for_selector("#play:not([hidden])")
    page.evaluate("document.getElementById('play-model').replaceChildren(new Option('m'))")
    page.evaluate("takePlay = () => {}")
    page.fill("#play-text", "wdaa wdab")
    page.select_option("#play-n", "3")
    page.fill("#play-max", "40")
    page.click("#play-go")
    until(page, "document.getElementById('play-told').textContent.includes('token')")
    can_ask = "document.getElementById('play-go').textContent === 'Ask'"
    until(page, can_ask)
    assert page.locator("#play-told.wrong").count() == 1, "without a token it is refused, in words"
    page.fill("#play-token", "good")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('play-told').textContent.includes('tokens/s')")
    until(page, can_ask)
    answers = page.locator("article .answer").all_inner_texts()
    assert len(answers) == 3 and len(set(answers)) == 3 and all(text.strip().startswith("w") for text in answers)
    assert page.locator("article footer").first.inner_text() == "answer 1 · cut at its length"
    for name, width, scheme in (("play", 1280, "light"), ("play-phone", 390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(400)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page is wider than its window"
        page.screenshot(path=tmp_path / f"page-{name}.png")
    # Asked again, and stopped.
    page.fill("#play-max", "1200")
    page.click("#play-go")
    until(page, "document.querySelectorAll('article .answer.writing').length > 0")
    page.click("#play-go")
    until(page, "document.getElementById('play-told').textContent === 'stopped'")
    assert page.inner_text("#play-go") == "Ask" and not page.errors
    page.close()


def test_the_playground_asks_for_the_key_and_for_what_can_be_asked(playground: str, address: str) -> None:
    def asked(root: str, body: bytes, key: str) -> tuple[int, str]:
        request = urllib.request.Request(f"{root}play", body, {"content-type": "application/json", "x-key": key})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    root, _, key = playground.partition("#")
    assert asked(root, b"{}", "wrong")[0] == 403
    for body in (b"", b"{", b"[]", b"{}", b'{"text": ""}', b'{"text": "a", "n": 9}', b'{"text": "a", "max_tokens": 0}'):
        assert asked(root, body, key)[0] == 400, body
    assert asked(root, b'{"text": "' + b"a" * (1 << 18) + b'"}', key)[0] == 400
    status, said = asked(root, b'{"text": "wdaa", "token": "bad"}', key)
    assert status == 200 and '"error"' in said
    other, _, other_key = address.partition("#")
    assert asked(other, b'{"text": "a"}', other_key)[0] == 404


def test_blocks_fly_between_pools(browser: Any, address: str) -> None:
    page = opened(browser, address, viewport={"width": 1280, "height": 900})
    until(page, "(window.flown || 0) > 5")
    until(
        page,
        """(() => { const c = document.getElementById("flights"); if (!c.width) return false;
        return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((value) => value > 0); })()""",
    )
    assert not page.errors
    page.close()


def test_connections_on_which_nothing_is_asked_keep_nobody_away(address: str) -> None:
    """64 of them took the page away: whoever is on the machine can open them, and needs no key."""
    root, _, key = address.partition("#")
    host, _, port = root.removeprefix("http://").strip("/").partition(":")
    with urllib.request.urlopen(f"{root}events?key={key}", timeout=20) as viewer:
        assert viewer.readline()
        idle = [socket.create_connection((host, int(port)), 5.0) for _ in range(100)]
        for half in idle[::2]:
            with contextlib.suppress(OSError):
                half.sendall(b"GET / HTTP/1.1\r\n")
        with urllib.request.urlopen(root, timeout=20) as answer:
            assert answer.status == 200
        # Who came before them, and is told something, stays.
        assert viewer.readline() and viewer.readline()
    for connection in idle:
        connection.close()


def test_the_pages_process_comes_with_the_cluster_and_goes_with_it(
    admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    settings = ClusterSettings(log_dir=str(tmp_path)).as_dict()
    running = Running("", "", "", [], "", "127.0.0.1:1", admin.address, settings, gateways=["127.0.0.1:1"])
    running.save()
    said: list[str] = []
    start_page(running, 0, said.append)
    assert not said and not running.page_pid
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        start_page(running, first, said.append)
    (told,) = said
    assert told.startswith("page http://127.0.0.1:") and f":{first}/" not in told
    noted = Running.load()
    assert noted is not None and noted.page_pid == running.page_pid
    with urllib.request.urlopen(told.split()[1]) as answer:
        assert b"<title>Quire</title>" in answer.read()
    # As another command does, which knows only the note.
    assert end_page(noted) == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(told.split()[1])
    # Its number may be another's by then, which is left alone.
    noted.page_pid = os.getpid()
    assert end_page(noted) == []


def test_many_viewers_at_once_are_bounded_and_do_not_hold_up_its_end(admin: Admin) -> None:
    page = Page(admin)
    server = server_of(page)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    serving.start()
    viewers = [socket.create_connection(listening.getsockname(), 5.0) for _ in range(30)]
    for viewer in viewers:
        viewer.sendall(f"GET /events?key={page.key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    for viewer in viewers:
        assert viewer.recv(1)
    assert page._num_viewers == MAX_VIEWERS
    server.should_exit = True
    serving.join(10.0)
    assert not serving.is_alive()
    for viewer in viewers:
        viewer.close()

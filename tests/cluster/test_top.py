"""The memory map as a watcher gets it, and the picture that is drawn of it: within 80 columns, and quickly."""

from __future__ import annotations

import io
import time
from random import Random
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster.centre.notes import Note
from cluster.centre.scheduler import Scheduler
from cluster.cli.top import BlockMaps
from cluster.cli.top_picture import LETTERS, PoolPicture, Scene, draw, listed
from cluster.cli.top_view import HELP, MAP, TABLES, View
from cluster.messages import ReplicaJoined, Submit, ids
from cluster.sampling import SamplingParams
from cluster.serving.admin import BLOCK_STATES
from cluster.serving.block_watch import BlockWatch
from cluster.settings import SchedulerSettings

REASON = "needs 40 blocks on demo-0, 3 are free beside the reserve"


def scheduler_with(blocks: int) -> Scheduler:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.turn([ReplicaJoined("demo-0", 1, "n0", "a", blocks, 4, 64, "layout", 64, 400)], 0.0)
    return scheduler


def submit(name: str, length: int) -> Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=8)
    return Submit(name, "g", int(name), "a", "t", ids(range(length)), (), sampling)


def follower() -> BlockMaps:
    """The client's side of the map, fed by hand."""
    maps = BlockMaps.__new__(BlockMaps)
    maps._pools = {}
    return maps


def test_a_watcher_that_follows_changes_sees_what_the_ledger_has() -> None:
    scheduler, random = scheduler_with(200), Random(3)
    watch, maps = BlockWatch(scheduler, BLOCK_STATES, (), True), follower()
    for step in range(60):
        scheduler.turn([submit(str(step + 1), random.randint(1, 40))] if random.random() < 0.5 else [], float(step))
        news = watch.news()
        if news is not None:
            maps._take(news)
        ledger = scheduler.replicas["demo-0"].ledger
        states, owners = maps._pools["demo-0"]
        assert bytes(states) == ledger.states(BLOCK_STATES)
        for request_id, request in scheduler.replicas["demo-0"].requests.items():
            for block in request.sequences[0].table:
                assert owners[block] == request_id
        assert sum(map(bool, owners)) == sum(ledger.holders(block) > 0 for block in range(200))
    assert watch.news() is None


def scene(blocks: int, random: Random) -> Scene:
    states = bytes(random.choices(range(1, 7), k=blocks))
    owners = [
        random.choice([f"local/{number:08x}" for number in range(300)]) if state in (2, 3) else "" for state in states
    ]
    requests = [
        {"id": f"local/{at:024x}", "state": "queued" if at % 3 else "running", "worker": "demo-0", "reason": REASON}
        | {"output": at, "blocks": at * 3, "queue_s": 1.5}
        for at in range(40)
    ]
    worker = SimpleNamespace(
        name="demo-0", draining=False, step_s=0.003, num_sequences=31, steps=1_234_567, dry_leases=9_876
    )
    head = {"version": "0.1.0", "workers": 12, "running": 345, "waiting": 67, "turn_us": 812.0, "share": 0.123}
    return Scene(
        head=head,
        tokens_per_s=123_456.0,
        first_ms=250.0,
        gap_ms=None,
        pools=[PoolPicture(f"demo-{at}", states, owners, 10, 20) for at in range(3)],
        workers=[worker],
        requests=requests,
        notes=[Note(1, 3.0, "preempted", "local/00ab", f"local/00cd needs a block and none is free; swap, {REASON}")],
        counters={
            "preempted swap": 3,
            "preempted recompute": 4,
            "transfer write done": 5,
            "transfer write lost": 7,
            "dry leases": 6,
        },
    )


@pytest.mark.parametrize("by_request", [False, True])
@pytest.mark.parametrize("blocks", [7, 1_000, 10_000])
def test_a_picture_fits_into_80_columns_and_says_why(blocks: int, by_request: bool) -> None:
    out = io.StringIO()
    drawn = draw(scene(blocks, Random(1)), 80, True, View(by_request=by_request))
    Console(file=out, width=80).print(drawn)
    lines = out.getvalue().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80 and "\x1b" not in text
    # Every pool has eight lines at most.
    assert len(lines) < 3 * 10 + 30
    for said in ("123,456 tokens/s", "first token 250 ms", "inter-token -", "812 us a turn", "dry leases 6"):
        assert said in text
    assert "queue: 26" in text and "needs 40 blocks on demo-0" in text
    assert "preempted 0000" not in text and "preempted local/00ab: local/00cd needs a block" in text
    # What does not fit whole is left out.
    assert "preempted recompute 4  preempted swap 3  transfer write done 5\n" in text


@pytest.mark.parametrize("by_request", [False, True])
@pytest.mark.parametrize(("height", "pools"), [(24, 3), (24, 1), (24, 40), (50, 3), (12, 3)])
def test_a_picture_fits_on_the_terminal_with_its_reasons(height: int, pools: int, by_request: bool) -> None:
    """However small it is, and however many pools and requests there are, every kind of line is there."""
    shown = scene(10_000, Random(3))
    shown.pools = [*shown.pools, *shown.pools * 13][:pools]
    shown.workers = [*shown.workers] * pools
    shown.away = "nothing answers at 127.0.0.1:50061" if pools == 40 else ""
    out = io.StringIO()
    Console(file=out, width=80).print(draw(shown, 80, True, View(by_request=by_request), height))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("as it was last: nothing answers" if shown.away else "Quire 0.1.0  12 workers  345 run")
    assert len(lines) < height and " a cell): 9,970 of 10,000 used" in out.getvalue()
    assert "demo-0: 31 sequences" in out.getvalue()
    if height >= 24:
        assert any(REASON[:20] in line for line in lines)
        assert len(lines) >= min(height - 4, 20) and "s ago preempted" in out.getvalue()


def test_a_cell_shows_the_busiest_state_of_its_blocks() -> None:
    states = bytes([1] * 80 * 8 + [4] * 80 * 8)
    busy = bytearray(states)
    busy[0], busy[5], busy[1_279] = 2, 6, 3
    maps = []
    for shown in (states, bytes(busy)):
        picture = Scene({}, 0.0, None, None, [PoolPicture("p", shown)], (), (), ())
        picture.head = {"version": "", "workers": 0, "running": 0, "waiting": 0, "turn_us": 0.0, "share": 0.0}
        out = io.StringIO()
        Console(file=out, width=80).print(draw(picture, 80, True, View()))
        maps.append("".join(line for line in out.getvalue().splitlines() if set(line) <= set(LETTERS[1:])))
    plain, marked = maps
    assert plain == LETTERS[1] * 320 + LETTERS[4] * 320
    differing = {at: marked[at] for at in range(640) if marked[at] != plain[at]}
    assert differing == {0: LETTERS[2], 2: LETTERS[6], 639: LETTERS[3]}


@pytest.mark.parametrize("by_request", [False, True])
def test_ten_thousand_blocks_are_drawn_smoothly(by_request: bool) -> None:
    """Ten pictures a second would leave most of a core free: processor time, which other work does not change."""
    shown, console = scene(10_000, Random(2)), Console(file=io.StringIO(), width=80, force_terminal=True)
    console.print(draw(shown, 80, False, View(by_request=by_request)))
    began = time.process_time()
    for _ in range(10):
        console.print(draw(shown, 80, False, View(by_request=by_request)))
    assert (time.process_time() - began) / 10 < 0.05


def test_the_map_costs_the_scheduler_little() -> None:
    scheduler = scheduler_with(10_000)
    scheduler.turn([submit(str(number), 300) for number in range(1, 60)], 1.0)
    watch = BlockWatch(scheduler, BLOCK_STATES, (), True)
    assert watch.news() is not None
    began = time.process_time()
    for _ in range(20):
        assert watch.news() is None
    assert (time.process_time() - began) / 20 < 0.005


def test_states_are_told_apart_without_colours_and_cells_say_how_many_blocks_they_are() -> None:
    """On a terminal too: letters are drawn in colour, not in its place."""
    shown, out = scene(10_000, Random(2)), io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="standard").print(draw(shown, 80, False, View()))
    text = out.getvalue()
    assert "\x1b[" in text and "■" not in text and " (16 a cell): " in text
    for letter in LETTERS[1:]:
        assert letter in text
    # Of a pool with long figures too, and what requests are sorted by.
    shown.pools = [PoolPicture("host-aaa831f8-86d0", shown.pools[0].states * 10, (), 100_000, 0)]
    out = io.StringIO()
    Console(file=out, width=80).print(draw(shown, 80, True, View(sort="tokens")))
    drawn = out.getvalue()
    assert "host-aaa831f8-86d0 (157 a cell): 0 of 100,000 used, 0 cached, 100,000 free\n" in drawn
    assert "sorted by tokens" in drawn
    few = io.StringIO()
    Console(file=few, width=80).print(draw(scene(7, Random(2)), 80, True, View()))
    assert "a cell" not in few.getvalue()


def test_keys_choose_sort_and_open() -> None:
    shown = scene(100, Random(1))
    ids = [one["id"] for one in listed(shown.requests, View())]
    assert len(ids) > 2
    view = View().press("\x1b[B", ids)
    assert view.chosen == ids[0]
    assert view.press("j", ids).chosen == ids[1] and view.press("k", ids).chosen == ids[0]
    assert view.press("\r", ids).screen == TABLES and view.press("\r", ids).press("\x1b", ids).screen == MAP
    assert view.press("?", ids).screen == HELP and view.press("?", ids).press("x", ids).screen == MAP
    assert View().press("\r", []) == View() and View().press("", ids) == View() and View().press("z", ids) == View()
    sorts = [view := view.press("s", ids) for _ in range(4)]
    assert [one.sort for one in sorts] == ["blocks", "tokens", "waited", "state"]
    by_blocks = [one["blocks"] for one in listed(shown.requests, sorts[0])]
    assert by_blocks == sorted(by_blocks, reverse=True)


@pytest.mark.parametrize("screen", [HELP, TABLES])
def test_other_screens_fit_as_well(screen: str) -> None:
    shown, out = scene(100, Random(1)), io.StringIO()
    shown.tables = ["request local/a: running", "  [0] 5 tokens", "      " + " ".join(map(str, range(900)))]
    Console(file=out, width=80).print(draw(shown, 80, True, View(screen=screen, chosen="local/a"), 24))
    lines = out.getvalue().splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert ("quarantined" in out.getvalue()) is (screen == HELP)
    assert ("[0] 5 tokens" in out.getvalue()) is (screen == TABLES)
    shown.tables = []
    Console(file=out, width=80).print(draw(shown, 80, True, View(screen=TABLES, chosen="local/a"), 24))
    assert "local/a has ended" in out.getvalue()


def test_the_chosen_request_is_always_seen() -> None:
    shown = scene(100, Random(1))
    for request in listed(shown.requests, View()):
        out = io.StringIO()
        Console(file=out, width=80).print(draw(shown, 80, True, View(chosen=request["id"]), 30))
        assert f"> {request['id'][-12:]}" in out.getvalue()

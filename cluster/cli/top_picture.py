"""What `quire top` shows, as lines of text: drawn from figures that were fetched before, so that drawing is quick.

Pure: given the same figures it draws the same picture. `cluster/cli/top.py` fetches, keeps time and reads keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from rich.console import Group
from rich.text import Text

from cluster.centre.notes import Note
from cluster.cli.top_view import HELP, KEYS, MAP, SORTS, View
from cluster.sizes import counted

# BlockState -> a letter, and a style where there are colours. States run from 1.
LETTERS = " .#SCmq"
STYLES = ("", "grey39", "green", "bold cyan", "blue", "yellow", "red")
NAMES = ("", "free", "held", "shared", "cached", "moving", "quarantined")
MEANINGS = (
    "",
    "nobody holds it, and nothing in it is known",
    "in one table",
    "in several tables; it is never written again",
    "nobody holds it; a prompt that begins so takes it",
    "on its way to or from another pool",
    "given back, and not free before all that could touch it is done",
)
# Quarantined, moving, shared and held show before cached and free.
RANK = bytes((0, 1, 4, 5, 3, 6, 7))
BY_RANK = bytes((0, 1, 0, 4, 2, 3, 5, 6))
OWNER_STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta", "bright_yellow")
OWNER_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MAP_ROWS, MAX_REQUESTS, MAX_NOTES, MAX_WAITING = 8, 8, 4, 3
QUEUED = ("queued", "parked", "swapped")


@dataclass(slots=True)
class PoolPicture:
    """One pool: `states` a byte a block, `owners` the name of the request that holds it, or ""."""

    name: str
    states: bytes
    owners: Sequence[str] = ()
    num_free: int = 0
    num_cached: int = 0


@dataclass(slots=True)
class Scene:
    """Everything that one picture is drawn from. `first_ms` and `gap_ms` are None where nobody told."""

    head: Mapping[str, Any]
    tokens_per_s: float
    first_ms: float | None
    gap_ms: float | None
    pools: Sequence[PoolPicture]
    workers: Sequence[Any]
    requests: Sequence[Mapping[str, Any]]
    notes: Sequence[Note]
    counters: Mapping[str, int] = field(default_factory=dict)
    # Of the chosen request, where its tables are shown.
    tables: Sequence[str] = ()
    # Why nothing newer is known.
    away: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """How much of everything a picture has: pools, lines of each map, workers, lines of the lists."""

    pools: int
    map_rows: int
    workers: int
    lists: int

    @staticmethod
    def on(height: int, scene: Scene, num_listed: int) -> Room:
        """What fits on a terminal: maps grow with it, and lists keep a quarter, so that reasons are seen as well."""
        # Three lines on top, the legend, and one that terminals scroll by.
        room = height - 5
        workers = min(len(scene.workers), max(1, room // 6))
        lists = min(num_listed, max(2, room // 4))
        rest = room - workers - lists
        pools = max(1, min(len(scene.pools), rest // 3))
        rows = max(1, min(MAP_ROWS, rest // pools - 2))
        # What maps do not need lists can have.
        return Room(pools, rows, workers, min(num_listed, max(lists, room - workers - pools * (rows + 2))))


def draw(scene: Scene, width: int, plain: bool, view: View, height: int | None = None) -> Any:
    """`height`: of the terminal that it has to fit on; None: everything is shown."""
    if view.screen != MAP:
        return _page(scene, width, plain, view, height)
    by_request = view.by_request
    listed = _queue(scene.requests), _requests(scene.requests, view), _notes(scene.notes)
    num_listed = sum(map(len, listed))
    everything = Room(len(scene.pools), MAP_ROWS, len(scene.workers), num_listed)
    room = everything if height is None else Room.on(height, scene, num_listed)
    parts: list[Text] = [*_head(scene, width, plain, view), Text(_joined(_pressure(scene.counters), width))]
    letters = _letters(scene.pools) if by_request else {}
    for pool in scene.pools[: room.pools]:
        used = len(pool.states) - pool.num_free - pool.num_cached
        figures = f"{used:,} of {len(pool.states):,} used, {pool.num_cached:,} cached, {pool.num_free:,} free"
        rows = room.map_rows
        run = _blocks_of_a_cell(len(pool.states), width, rows)
        # Before the figures, which a narrow terminal cuts: without it the map cannot be read.
        cell = "" if run == 1 else f" ({run:,} a cell)"
        parts.append(Text(f"\n{pool.name}{cell}: {figures}"[: width + 1]))
        parts.append(
            _owner_map(pool, letters, width, rows) if by_request else _state_map(pool.states, width, plain, rows)
        )
    parts.append(_owner_legend(letters, width) if by_request else _legend(plain))
    for worker in scene.workers[: room.workers]:
        state = "drains" if worker.draining else f"{worker.step_s * 1e3:.1f} ms a step"
        told = f"{counted(worker.num_sequences, 'sequence')}, {state}, {counted(worker.steps, 'step')}"
        told += f", {counted(worker.dry_leases, 'dry lease')}"
        parts.append(Text(f"{worker.name}: {told}"[:width]))
    parts += [Text(line[:width]) for line in _cut(*listed, most=room.lists)]
    return Group(*parts)


def _page(scene: Scene, width: int, plain: bool, view: View, height: int | None) -> Any:
    """What is shown in the place of the maps: tables of a request, or the keys."""
    if view.screen == HELP:
        lines = ["keys", *(f"  {key:16} {told}" for key, told in KEYS), "", "blocks of a map", *_meanings()]
    else:
        lines = [piece for line in scene.tables for piece in wrap(line, width, subsequent_indent="      ")]
        lines = lines or [f"request {view.chosen} has ended; Esc goes back"]
    shown = lines if height is None else lines[: max(1, height - 4)]
    return Group(*_head(scene, width, plain, view), Text(""), *(Text(line[:width]) for line in shown))


def _meanings() -> list[str]:
    return [f"  {LETTERS[state]}  {NAMES[state]:12} {MEANINGS[state]}" for state in range(1, 7)]


def _cut(queue: list[str], requests: list[str], notes: list[str], *, most: int) -> list[str]:
    """So many lines of the three, the longest of them cut first; of notes the oldest go."""
    while len(queue) + len(requests) + len(notes) > most:
        longest = max(requests, queue, notes, key=len)
        longest.pop(0 if longest is notes else -1)
    return [*queue, *requests, *notes]


def _head(scene: Scene, width: int, plain: bool, view: View) -> list[Text]:
    head = scene.head
    first = "-" if scene.first_ms is None else f"{scene.first_ms:,.0f} ms"
    gap = "-" if scene.gap_ms is None else f"{scene.gap_ms:,.1f} ms"
    workers = counted(head["workers"], "worker")
    order = "" if view.sort == SORTS[0] else f"  sorted by {view.sort}"
    moment = (
        f"Quire {head['version']}  {workers}  {head['running']} run  {head['waiting']} wait  "
        f"{scene.tokens_per_s:,.0f} tokens/s{order}"
    )
    lines = (
        f"as it was last: {scene.away}" if scene.away else moment,
        f"first token {first}  inter-token {gap}  scheduler {head['turn_us']:.0f} us a turn, "
        f"{100 * head['share']:.1f} % busy",
    )
    return [Text(line[:width], style="" if plain else "bold") for line in lines]


def _pressure(counters: Mapping[str, int]) -> list[str]:
    parts = [f"dry leases {counters.get('dry leases', 0):,}"]
    shown = sorted(name for name in counters if name.startswith(("preempted", "transfer", "moved")))
    return parts + [f"{name} {counters[name]:,}" for name in shown]


def _joined(parts: Sequence[str], width: int) -> str:
    """As many as fit whole on a line."""
    while len(line := "  ".join(parts)) > width:
        parts = parts[:-1]
    return line


# -- maps


def _blocks_of_a_cell(num_blocks: int, width: int, rows: int) -> int:
    return max(1, -(-num_blocks // (width * rows)))


def _state_map(states: bytes, width: int, plain: bool, rows: int) -> Text:
    """Each cell stands for a run of blocks and shows the busiest state among them."""
    run = _blocks_of_a_cell(len(states), width, rows)
    ranks = states.translate(RANK.ljust(256, b"\0"))
    shown = bytes(max(ranks[at : at + run]) for at in range(0, len(ranks), run)).translate(BY_RANK.ljust(256, b"\0"))
    return _cells([(LETTERS[state], "" if plain else STYLES[state]) for state in shown], width)


def _letters(pools: Sequence[PoolPicture]) -> dict[str, str]:
    """A letter for each request that holds blocks, those with most blocks first; the rest share a star."""
    counts: dict[str, int] = {}
    for pool in pools:
        for owner in pool.owners:
            if owner:
                counts[owner] = counts.get(owner, 0) + 1
    ordered = sorted(counts, key=lambda owner: (-counts[owner], owner))
    return {owner: OWNER_LETTERS[at] if at < len(OWNER_LETTERS) else "*" for at, owner in enumerate(ordered)}


def _owner_map(pool: PoolPicture, letters: Mapping[str, str], width: int, rows: int) -> Text:
    run = _blocks_of_a_cell(len(pool.states), width, rows)
    cells = []
    for at in range(0, len(pool.states), run):
        held = [owner for owner in pool.owners[at : at + run] if owner]
        letter = letters.get(held[0], "*") if held else "."
        cells.append((letter, OWNER_STYLES[ord(letter) % len(OWNER_STYLES)] if held else STYLES[1]))
    return _cells(cells, width)


def _cells(cells: Sequence[tuple[str, str]], width: int) -> Text:
    """Runs of one style are one piece of text: a terminal draws those a hundred times as fast as single cells."""
    text = Text()
    for row in range(0, len(cells), width):
        if row:
            text.append("\n")
        line, at = cells[row : row + width], 0
        while at < len(line):
            end = at
            while end < len(line) and line[end] == line[at]:
                end += 1
            text.append(line[at][0] * (end - at), line[at][1])
            at = end
    return text


def _legend(plain: bool) -> Text:
    if plain:
        return Text("  ".join(f"{LETTERS[state]} {NAMES[state]}" for state in range(1, 7)))
    shown = [(f"{LETTERS[state]} {NAMES[state]}  ", STYLES[state]) for state in range(1, 7)]
    return Text.assemble(*shown, ("? help", "dim"))


def _owner_legend(letters: Mapping[str, str], width: int) -> Text:
    """As many as there is room for, those with most blocks first, by the names that the list below has."""
    if not letters:
        return Text("nobody holds a block")
    named = [f"{letter} {owner[-12:]}" for owner, letter in letters.items() if letter != "*"]
    more = f"and {len(letters):,} more"
    shown = named[: max(1, (width - len(more)) // 16)]
    left = len(letters) - len(shown)
    return Text("  ".join([*shown, f"and {left:,} more"] if left else shown)[:width])


# -- lists


def _queue(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the first of those that wait do."""
    waiting = [one for one in requests if one["state"] in QUEUED]
    lines = [f"waits {one['queue_s']:.1f} s: {one['id'][-12:]} {one['reason']}" for one in waiting[:MAX_WAITING]]
    return [f"queue: {len(waiting)}", *lines] if waiting else []


def listed(requests: Sequence[Mapping[str, Any]], view: View) -> list[Mapping[str, Any]]:
    """Requests that are under way, in the order that was chosen."""
    return view.ordered([one for one in requests if one["state"] not in QUEUED])


def _requests(requests: Sequence[Mapping[str, Any]], view: View) -> list[str]:
    running = listed(requests, view)
    ids = [one["id"] for one in running]
    # The chosen one is among the first, which are the last to be cut.
    first = max(0, ids.index(view.chosen) - 1) if view.chosen in ids else 0
    running = running[first:]
    lines = [
        f"{'>' if one['id'] == view.chosen else ' '} {one['id'][-12:]:12} {one['state']:8} {one['output']:6,} tokens "
        f"{one['blocks']:5,} blocks  {one['worker']}  {one['reason']}"
        for one in running[:MAX_REQUESTS]
    ]
    return [*lines, f"... and {len(running) - MAX_REQUESTS} more"] if len(running) > MAX_REQUESTS else lines


def _notes(notes: Sequence[Note]) -> list[str]:
    """What happened last, with its reason."""
    return [f"{note.at:5.0f} s ago {note.kind} {note.subject[-12:]}: {note.why}" for note in notes[-MAX_NOTES:]]

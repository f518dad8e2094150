"""The two machines of a conversation: wherever a connection breaks, nothing is lost, doubled or reordered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import pytest

from cluster.errors import ProtocolError
from cluster.links.frames import MESSAGE, PART, PULSE, WELCOME, FrameBuffer, Hello, Refusal, Welcome, pack
from cluster.links.terms import Terms
from tests.links.machines import SILENT, TERMS, Pair, Wire, frames_of

# A short conversation: who says what, who is new, or that it is turned away (A). "U" and "D" are longer than a frame.
SCRIPTS = ("uuu", "ddd", "udud", "UuDd", "DDuu", "uNuu", "dNdud", "UNUdD", "uuuNdddNudU", "AuDd", "uUAdu", "dNdAuNd")
# How a connection breaks: who notices, and whether what is under way is lost.
CUTS: dict[str, dict[str, bool]] = {
    "both see it": {},
    "late for the caller, who opens another": {"listener": False},
    "half-open above, stragglers come": {"listener": False, "loses": False},
}
MANY = 20


def play(pair: Pair, script: str, breaks: dict[int, str]) -> tuple[list[bytes], list[bytes]]:
    """Runs a script and breaks the connection before the given steps; returns what has been said up and down in the
    lives that are the last ones."""
    up: list[bytes] = []
    down: list[bytes] = []
    pair.open()
    words = iter(script)
    word: str | None = next(words)
    at = 0
    while True:
        if at in breaks:
            pair.cut(**CUTS[breaks[at]])
        at += 1
        if pair.wire is None:
            pair.open()
            continue
        if pair.step():
            continue
        if word is None:
            break
        text = f"{at} {word}".encode() + b"." * (30 if word.isupper() else 0)
        if word == "N":
            # Another life of the listener, which knows nothing: it asks for the state.
            pair.listener = pair.new_listener(pair.listener.life + 1)
            pair.cut()
            pair.up.clear()
            pair.down.clear()
            up, down = [pair.state], []
        elif word == "A":
            # What was said before is void, and may come or not.
            pair._listener_does(pair.listener.turn_away("d", "not as things are", pair.now))
            up, down = [pair.state], []
        elif word in "uU":
            up.append(text)
            pair.say_up(text)
        else:
            down.append(text)
            pair.say_down(text)
        word = next(words, None)
    for _ in range(2):
        pair.tick(0.5)
        pair.run()
    pair.num_steps = at
    return up, down


def judge(pair: Pair, up: list[bytes], down: list[bytes]) -> None:
    if pair.refused:
        # It was turned away once. Of what was said before some may have come.
        (refused,) = pair.refused
        assert refused.reason == "away"
        assert pair.up[len(pair.up) - len(up) :] == up and pair.down[len(pair.down) - len(down) :] == down
    else:
        assert (pair.up, pair.down) == (up, down)
    assert not pair.lost
    assert not [one for one in pair.closed if one.is_garbled]
    # What both ends know to be taken is kept by neither.
    assert pair.dialer.numbers.num_kept == 0
    assert pair.listener.peers["d"].numbers.num_kept == 0


@pytest.mark.parametrize("piece", [0, 7])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_connection_breaks_at_every_boundary(script: str, piece: int) -> None:
    pair = Pair(piece=piece)
    judge(pair, *play(pair, script, {}))
    num_steps = pair.num_steps
    assert num_steps > len(script)
    for cut in CUTS:
        for at in range(num_steps + 1):
            pair = Pair(piece=piece)
            judge(pair, *play(pair, script, {at: cut}))


@pytest.mark.parametrize("script", ["uudd", "UdN", "dNu", "uNd", "uAd"])
def test_connections_break_at_every_two_boundaries(script: str) -> None:
    pair = Pair()
    play(pair, script, {})
    for first, second in combinations(range(pair.num_steps + 6), 2):
        for cut in CUTS:
            for other in CUTS:
                pair = Pair()
                judge(pair, *play(pair, script, {first: cut, second: other}))


def test_a_state_is_asked_for_until_it_is_told() -> None:
    """The connection breaks again and again between the hello and the state."""
    pair = Pair()
    pair.open()
    pair.run()
    pair.listener = pair.new_listener(2)
    for at in range(1, 5):
        pair.cut()
        pair.open()
        for _ in range(at % 3 + 1):
            pair.step()
        if pair.up:
            break
        assert pair.listener.peers.get("d") is None or pair.listener.peers["d"].wants_state
    pair.cut()
    pair.open()
    pair.run()
    assert pair.up == [b"state"]
    assert not pair.listener.peers["d"].wants_state


def test_what_is_said_before_the_state_is_a_part_of_it() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair.listener = pair.new_listener(2)
    pair.cut()
    pair.open()
    pair.say_up(b"to the old one")
    pair.run()
    pair.say_up(b"later")
    pair.run()
    assert pair.up == [b"state", b"later"]


def test_an_end_without_a_state_keeps_what_it_has_said_for_the_next_life() -> None:
    """Tokens for a gateway that starts anew."""
    terms = Terms(1, 1, silence_s=4.0, loses=False, keeps=True, part_bytes=8)
    pair = Pair(terms, has_state=False)
    pair.say_up(b"before anybody was there")
    pair.open()
    pair.run()
    assert pair.up == [b"before anybody was there"]
    for _ in range(2):
        pair.tick(0.5)
        pair.run()
    assert pair.dialer.numbers.num_kept == 0
    # Two of its three parts are known to be taken by the life that ends.
    pair.say_up(b"0123456701234567012")
    pair.step()
    pair.step()
    pair.wires[-1].up.clear()
    pair.tick(0.5)
    pair.step()
    pair.step()
    assert pair.listener.peers["d"].numbers.parts_bytes == 16 and pair.dialer.numbers.num_kept == 3
    pair.cut()
    pair.listener, pair.up = pair.new_listener(2), []
    pair.open()
    pair.run()
    assert pair.up == [b"0123456701234567012"]


# ---------------------------------------------------------------- who is let in


def refused(pair: Pair) -> str:
    pair.run()
    return pair.refused[-1].detail if pair.refused else ""


def test_a_lower_life_of_either_end_is_refused_by_name() -> None:
    pair = Pair()
    pair.dialer.begin(5)
    pair.open()
    pair.run()
    old = Pair()
    old.listener, old.wires = pair.listener, [Wire(1, at_listener=False, at_dialer=False)]
    old.open()
    assert refused(old) == "d lives as 5; this is 1"
    assert not old.refused[-1].is_lost

    new = Pair()
    new.listener = new.new_listener(3)
    new.open()
    new.run()
    new.cut()
    new.listener = new.new_listener(2)
    new.open()
    assert refused(new) == "this is life 2 of l, and d has met 3"
    # A listener that does not look: the dialer sees it by itself.
    new.open()
    new.wires[-1].up.clear()
    new._send(new.wires[-1].down, Welcome(1, 2, False, 1.0).pack(0))
    new.run()
    assert "and 3 was met" in new.closed[-1].detail
    assert new.dialer.peer_life == 3 and not new.dialer.is_met


def test_a_life_that_was_lost_never_comes_back() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair._listener_does(pair.listener.lose("d", "for the test", pair.now))
    pair.cut()
    pair.open()
    assert refused(pair) == "life 1 of d was declared lost; come with a higher one"
    assert pair.refused[-1].is_lost
    pair.dialer.begin(2)
    pair.open()
    pair.say_up(b"anew")
    pair.run()
    assert pair.up == [b"anew"] and pair.met_above[-1].is_new


@pytest.mark.parametrize("before", [0, 1, 3])
def test_words_that_come_in_one_read_with_the_welcome_of_a_new_life_are_its_own(before: int) -> None:
    """They were counted by the numbers of the life before: passed over, or taken and then taken again."""
    pair = Pair()
    pair.open()
    pair.run()
    for number in range(before):
        pair.say_down(bytes([number]))
    pair.run()
    pair.cut()
    pair.listener = pair.new_listener(2)
    pair.open()
    wire = pair.wires[-1]
    while wire.up:
        pair._arrive_up(wire)
    pair.say_down(b"a")
    pair.say_down(b"b")
    merged = b"".join(wire.down)
    wire.down.clear()
    wire.down.append(merged)
    pair.run()
    assert pair.down == [bytes([number]) for number in range(before)] + [b"a", b"b"]
    assert not pair.closed and pair.dialer.numbers.taken == 2


def test_who_was_lost_and_goes_on_as_its_next_life_is_asked_for_what_it_holds() -> None:
    pair = Pair()
    pair.open()
    pair.say_up(b"before")
    pair.run()
    pair.say_up(b"of the state")
    pair.cut()
    pair.tick(1.5)
    assert [lost.life for lost in pair.lost] == [1]
    pair.open()
    pair.run()
    assert pair.refused[-1].is_lost
    pair.dialer.begin(2, holds_state=True)
    pair.say_up(b"also of the state")
    pair.open()
    pair.run()
    assert pair.met_below[-1].wants_state and pair.met_below[-1].is_new
    pair.say_up(b"after")
    pair.run()
    assert pair.up == [b"before", b"state", b"after"]


@pytest.mark.parametrize("hears", ["there", "late", "later"])
def test_who_is_turned_away_begins_anew_and_tells_its_state_again(hears: str) -> None:
    """It may hear that only with its next hello, because its connection broke before that, or had broken already."""
    pair = Pair()
    pair.open()
    pair.run()
    pair.say_down(b"void")
    pair.say_up(b"taken")
    pair.run()
    assert (pair.up, pair.down) == ([b"taken"], [b"void"])
    pair.say_down(b"lost with it")
    if hears == "later":
        pair.run()
        pair.cut()
    pair._listener_does(pair.listener.turn_away("d", "not as things are", pair.now))
    if hears == "late":
        pair.cut()
    pair.say_up(b"void too")
    if hears != "there":
        pair.open()
    pair.run()
    details = {"there": "not as things are"}
    assert [(one.reason, one.detail) for one in pair.refused] == [
        ("away", details.get(hears, "life 1 of d was turned away; begin anew"))
    ]
    assert not pair.lost and not pair.listener.peers and pair.wire is None
    for _ in range(2):
        # The welcome is lost the first time.
        pair.open()
        pair.step()
        pair.cut()
    pair.open()
    pair.run()
    pair.say_up(b"anew")
    pair.say_down(b"and down")
    pair.run()
    came = [b"void", b"and down"] if hears == "late" else [b"void", b"lost with it", b"and down"]
    assert (pair.up, pair.down) == ([b"taken", b"state", b"anew"], came)
    assert pair.met_below[-1].is_new


def test_a_higher_life_ends_the_lower_one() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair.cut(listener=False)
    pair.dialer.begin(2)
    pair.open()
    pair.run()
    assert [(one.life, one.detail) for one in pair.lost] == [(1, "it started anew as 2")]
    assert pair.listener.peers["d"].life == 2


def hello(**changes: int | str) -> bytes:
    fields = {
        "name": "d",
        "life": 1,
        "peer": "l",
        "peer_life": 0,
        "connection": 1,
        "has_state": False,
        "is_anew": False,
        "oldest_protocol": 1,
        "newest_protocol": 1,
    }
    return Hello(**{**fields, **changes}).pack(int(changes.pop("taken", 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (hello(peer="m"), "d calls m, and here is l"),
        (hello(oldest_protocol=2, newest_protocol=3), "l speaks protocol 1 to 1, d 2 to 3"),
        (hello(peer_life=1), "life 1 of d is not known here any more"),
        (hello(peer_life=9), "this is life 1 of l, and d has met 9"),
    ],
)
def test_who_does_not_fit_is_refused(word: bytes, why: str) -> None:
    pair = Pair()
    pair.open()
    pair.wires[-1].up.clear()
    pair._send(pair.wires[-1].up, word)
    assert why in refused(pair)
    assert not pair.listener.peers


def test_a_card_that_means_nothing_is_refused() -> None:
    def read_card(name: str, life: int, raw: bytes) -> bytes:
        raise ProtocolError("a pool of 0 blocks")

    pair = Pair()
    pair.listener._read_card = read_card
    pair.open()
    assert refused(pair) == "d: a pool of 0 blocks"
    assert not pair.listener.peers


def test_the_newest_connection_counts_whichever_hello_comes_last() -> None:
    pair = Pair()
    pair.open()
    # The first hello is slow; the second connection is met before it.
    slow = list(pair.wires[0].up)
    pair.wires[0].up.clear()
    pair.cut(listener=False, loses=False)
    pair.open()
    pair.run()
    assert pair.listener.peers["d"].connection == 2
    pair.wires[0].up.extend(slow)
    pair.run()
    assert pair.listener.peers["d"].connection == 2 and not pair.wires[0].at_listener
    pair.say_down(b"here")
    pair.run()
    assert pair.down == [b"here"]


# ---------------------------------------------------------------- silence


def test_a_peer_that_is_silent_is_lost_and_one_that_pulses_is_not() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    for _ in range(100):
        pair.tick(0.5)
        pair.run()
    assert not pair.lost and pair.wire is not None
    pair.wires[-1].at_listener = False
    for _ in range(8):
        pair.tick(0.5)
        assert not pair.lost
    pair.tick(0.5)
    assert [one.detail for one in pair.lost] == ["nothing was heard of it for 4.5 s"]


def test_a_stream_that_broke_and_does_not_come_back_is_a_loss_sooner() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair.cut()
    pair.tick(0.5)
    pair.tick(0.5)
    assert not pair.lost
    pair.tick(0.5)
    assert [one.detail for one in pair.lost] == ["its connection broke and has not come back for 1.5 s"]


def test_the_time_in_which_an_end_itself_stood_still_is_nobodys_silence() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair.tick(0.5)
    pair.run()
    pair.now += 1000.0
    pair._listener_does(pair.listener.tick(pair.now))
    assert not pair.lost
    for _ in range(9):
        pair.now += 0.5
        pair._listener_does(pair.listener.tick(pair.now))
    assert len(pair.lost) == 1


def test_a_dialer_leaves_an_end_that_says_nothing() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    pair.now += SILENT
    pair._dialer_does(pair.dialer.silence(pair.now))
    assert pair.wire is not None
    pair.now += 0.2
    pair._dialer_does(pair.dialer.silence(pair.now))
    assert pair.wire is None


def test_where_nobody_is_lost_only_the_connection_is_closed() -> None:
    pair = Pair(Terms(1, 1, silence_s=4.0, loses=False))
    pair.open()
    pair.run()
    pair.say_up(b"1")
    pair.run()
    pair.wires[-1].down.clear()
    for _ in range(9):
        pair.now += 0.5
        pair._listener_does(pair.listener.tick(pair.now))
    assert not pair.lost and not pair.wires[-1].at_listener
    pair.cut()
    pair.open()
    pair.say_up(b"2")
    pair.run()
    assert pair.up == [b"1", b"2"]


# ---------------------------------------------------------------- bounds


def test_more_than_may_be_kept_is_a_loss() -> None:
    pair = Pair(Terms(1, 1, max_kept_bytes=2000))
    pair.open()
    pair.run()
    pair.cut()
    while not pair.lost:
        pair.say_down(bytes(100))
    assert "has not taken 2,210 bytes" in pair.lost[0].detail


def test_only_a_window_is_on_its_way() -> None:
    pair = Pair(Terms(1, 1, window_bytes=300, untold_bytes=100))
    pair.open()
    pair.run()
    for number in range(MANY):
        pair.say_up(bytes([number]) * 100)
        assert sum(map(len, pair.wires[-1].up)) <= 300 + 121
    assert pair.dialer.numbers.num_kept == MANY
    pair.run()
    assert [message[0] for message in pair.up] == list(range(MANY))


def test_a_message_larger_than_its_bound_is_no_message() -> None:
    pair = Pair()
    pair.open()
    pair.run()
    with pytest.raises(ProtocolError, match=r"1,001 bytes; 1,000 are the most"):
        pair.say_up(bytes(1001))
    pair.say_up(bytes(1000))
    pair.run()
    assert pair.up == [bytes(1000)]
    # One that comes in ever more parts all the same.
    taken = pair.listener.peers["d"].numbers.taken
    for number in range(1, 127):
        pair._listener_does(pair.listener.heard(1, [(PART, taken + number, 0, bytes(8))], pair.now))
    assert pair.closed[-1].detail == "a message of more than 1,000 bytes" and pair.closed[-1].is_garbled
    assert pair.listener.peers["d"].numbers.parts_bytes == 1000


# ---------------------------------------------------------------- bytes that mean nothing


def unreadable(raw: bytes) -> bytes:
    if raw == b"bad":
        raise KeyError("whatever a reader trips over")
    return raw


def test_what_cannot_be_read_is_not_taken_and_comes_again() -> None:
    pair = Pair()
    pair.listener._read = unreadable
    pair.open()
    pair.run()
    pair.say_up(b"good")
    pair.say_up(b"bad")
    pair.say_up(b"behind it")
    pair.run()
    assert pair.up == [b"good"] and pair.closed[-1].is_garbled and "KeyError" in pair.closed[-1].detail
    # It was the connection that garbled it: on the next one it is read.
    pair.listener._read = bytes
    pair.cut()
    pair.open()
    pair.run()
    assert pair.up == [b"good", b"bad", b"behind it"]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(pack(MESSAGE, 3, 0, b"x"), id="a gap"),
        pytest.param(pack(MESSAGE, 1, 9, b"x"), id="takes what was never said"),
        pytest.param(pack(PULSE, 0, 9), id="a pulse takes what was never said"),
        pytest.param(pack(99, 0, 0), id="no kind"),
        pytest.param(Refusal("lost", 1, "").pack(), id="a refusal in the midst"),
        pytest.param(hello(), id="another hello"),
    ],
)
def test_frames_that_do_not_fit_end_the_connection(frame: bytes) -> None:
    def above(pair: Pair) -> None:
        pair._send(pair.wires[-1].up, frame)

    def below(pair: Pair) -> None:
        pair._send(pair.wires[-1].down, frame)

    def one(put: Callable[[Pair], None]) -> None:
        pair = Pair()
        pair.open()
        pair.run()
        put(pair)
        pair.run()
        assert pair.closed[-1].is_garbled and not pair.lost
        pair.cut()
        pair.open()
        pair.say_up(b"up")
        pair.run()
        pair.say_down(b"down")
        pair.run()
        assert (pair.up, pair.down) == ([b"up"], [b"down"])

    one(above)
    one(below)


def first_words() -> Iterator[bytes]:
    """All first words of both ends, cut short at every byte and with every byte changed."""
    for word in (hello(name="a name"), Welcome(1, 1, True, 1.0, b"card").pack(0), Refusal("card", 1, "why").pack()):
        kind, body = word[4], word[21:]
        for size in range(len(body)):
            yield pack(kind, 0, 0, body[:size])
        for at in range(len(body)):
            yield pack(kind, 0, 0, body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :])


def test_garbled_first_words_end_at_most_their_connection() -> None:
    for word in first_words():
        for is_up in (True, False):
            pair = Pair()
            pair.open()
            wire = pair.wires[-1]
            wire.up.clear()
            pair._send(wire.up if is_up else wire.down, word)
            pair.run()
            pair.listener.check()
            pair.dialer.check()


def test_frames_are_found_wherever_the_stream_was_cut() -> None:
    words = [pack(MESSAGE, number, 0, b"x" * size) for number, size in enumerate((0, 1, 70_000, 5, 200_000))]
    stream = b"".join(words)
    for step in (1, 3, 4096, 65_536, 1 << 20):
        frames, found, at = FrameBuffer(), [], 0
        while at < len(stream):
            num = min(step, len(frames.room()), len(stream) - at)
            found += frames_of(frames, stream[at : at + num])
            at += num
        assert [pack(*frame) for frame in found] == words, step


@pytest.mark.parametrize("size", [0, 16, (1 << 20) + 18, (1 << 32) - 1])
def test_a_frame_of_no_possible_size_is_refused_before_it_comes(size: int) -> None:
    with pytest.raises(ProtocolError, match="is announced"):
        frames_of(FrameBuffer(), size.to_bytes(4, "little"))


def test_hellos_and_welcomes_are_what_they_were() -> None:
    assert TERMS.silence_s == SILENT + 0.1
    (frame,) = frames_of(FrameBuffer(), Welcome(1, 7, True, 2.5, b"card").pack(3))
    assert frame[:3] == (WELCOME, 0, 3)

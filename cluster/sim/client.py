"""A simulated client: what it asks, and what it has got. It is the witness of the promise that nothing is lost.

A client counts a token only in its place: one that comes twice, out of order or after the end is a failure of the
cluster, raised on the spot. What it should have got is known from the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.messages import Reason
from cluster.sim.beams import best, search
from cluster.sim.model import END_TOKEN, follow


class Violation(AssertionError):
    """The cluster broke a promise that this project makes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a workload, as a person could write it down. Times in seconds of virtual time."""

    request_id: str
    at: float
    gateway: int
    tenant: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    n: int = 1
    beam_width: int = 0
    priority: int = 0
    salt: bytes = b""
    deadline_s: float | None = None
    cancel_after_s: float | None = None
    stop_at: tuple[int, int] | None = None  # a stop string ends this sequence after so many tokens
    resumes: bool = True  # comes back through another gateway when its own has died
    model: str = "m"
    moves: tuple[tuple[float, int], ...] = ()  # so long after it came, it comes back through this gateway
    errs_after_s: float | None = None  # it tries once to resume with other parameters


@dataclass(slots=True)
class Client:
    """`outcome`: "" while it goes on, "done", "cancelled", "refused CODE", or "broken" when its gateway died."""

    ask: Ask
    end_one_in: int
    num_noises: int = 1
    received: list[list[int]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    gateway: str = ""  # the one that it is connected to
    outcome: str = ""
    detail: str = ""
    accepted: bool = False
    num_resumes: int = 0
    num_repeats: int = 0  # resumes that found nothing, so that it was asked anew
    last_token_at: float = 0.0
    route: tuple[str, int] = ("", 0)  # the gateway and route whose stream it reads; words of others do not reach it

    def __post_init__(self) -> None:
        self.received = [[] for _ in range(self.num_sequences)]
        self.reasons = [Reason.NONE] * self.num_sequences

    @property
    def num_sequences(self) -> int:
        return self.ask.n

    def take(self, index: int, position: int, tokens: list[int], now: float) -> None:
        if self.outcome:
            return  # it has gone away
        mine = self.received[index]
        if self.reasons[index] is not Reason.NONE:
            raise Violation(f"{self.ask.request_id}[{index}] got {len(tokens)} tokens after its end")
        if position != len(mine):
            raise Violation(f"{self.ask.request_id}[{index}] got position {position} after {len(mine)} tokens")
        mine.extend(tokens)
        self.last_token_at = now

    def finish(self, index: int, reason: Reason) -> None:
        if not self.outcome:
            self.reasons[index] = reason

    def judge(self) -> None:
        """What it has is what the model says, and all of it if it is done; called once it has ended."""
        ask = self.ask
        if ask.beam_width:
            self._judge_beams()
            return
        for index, mine in enumerate(self.received):
            name = f"{ask.request_id}[{index}] ({self.outcome})"
            wrong = follow(ask.model, ask.prompt, (ask.seed, index, self.num_noises), mine, self.end_one_in)
            if wrong is not None:
                raise Violation(f"{name} has a wrong token at {wrong}: {mine}")
            limit = ask.max_tokens
            if ask.stop_at is not None and ask.stop_at[0] == index:
                limit = min(limit, ask.stop_at[1])
            if len(mine) > limit:
                raise Violation(f"{name} has {len(mine)} tokens, and {limit} at most were asked for")
            if self.outcome != "done":
                continue
            if not mine or (mine[-1] != END_TOKEN and len(mine) < limit):
                raise Violation(f"{name} has lost tokens: it ends after {len(mine)} of {limit}: {mine}")
            if self.reasons[index] is Reason.NONE:
                raise Violation(f"{name} was never told why it ended")

    def _judge_beams(self) -> None:
        """Beams come whole or not at all, and are those that the search finds without any cluster."""
        ask = self.ask
        if self.outcome != "done" and not any(self.received):
            return
        wanted = []
        for noise in range(self.num_noises):
            found = search(ask.model, ask.prompt, ask.seed + noise, ask.beam_width, ask.max_tokens, self.end_one_in)
            wanted.append([list(each.tokens) for each in best(found, ask.n)])
        if self.received not in wanted:
            raise Violation(f"{ask.request_id} ({self.outcome}) found beams {self.received}, not {wanted}")

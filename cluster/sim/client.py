"""A simulated client: what it asks, and what it has got. It is the witness of the promise that nothing is lost.

A client counts a token only in its place: one that comes twice, out of order or after the end is a failure of the
cluster, raised on the spot. What it should have got is known from the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.messages import Logprobs, Reason
from cluster.sim.beams import best, search
from cluster.sim.model import END_TOKEN, follow, logprobs

GRACE_S = 3.0
"""So long a gateway keeps the request of a client whose connection broke: longer than words that are late."""


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
    logprobs: bool = False
    prompt_logprobs: bool = False
    leaves_after_s: float | None = None  # its connection breaks and it never comes back
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Warm:
    """A prefix that somebody wants to be kept for so long, and for how long he waits for it. Times in seconds."""

    at: float
    gateway: int
    tenant: str
    model: str
    prompt: tuple[int, ...]
    keeps_s: float
    waits_s: float
    salt: bytes = b""


@dataclass(slots=True)
class SimClient:
    """`outcome`: "" while it goes on, "done", "cancelled", "refused CODE", "left", "broken" when its gateway died and
    it does not come back, or "lost" when it did and nobody knew its request any more."""

    ask: Ask
    end_one_in: int
    num_noises: int = 1
    received: list[list[int]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    gateway: str = ""  # the one that it is connected to
    outcome: str = ""
    detail: str = ""
    accepted: bool = False
    num_sent: int = 0  # how often it asked or resumed
    is_resuming: bool = False  # what it sent last
    num_orphaned: int = 0  # gateways that died under it
    last_token_at: float = 0.0
    # By sequence: of its tokens, as far as they came with any; and of the prompt.
    logprobs: list[list[Logprobs | None]] = field(default_factory=list)
    prompt_logprobs: list[Logprobs | None] = field(default_factory=list)
    has_come_back: bool = False
    stream: object = None  # the one that it reads: words on others do not reach it

    def __post_init__(self) -> None:
        self.received = [[] for _ in range(self.num_sequences)]
        self.logprobs = [[] for _ in range(self.num_sequences)]
        self.reasons = [Reason.NONE] * self.num_sequences

    @property
    def num_sequences(self) -> int:
        return self.ask.n

    @property
    def reads_bytes(self) -> int:
        """Some read slowly, a few tokens at a time."""
        return 40 if self.ask.seed % 16 == 0 else 1 << 16

    @property
    def names_only(self) -> bool:
        """Some come back with the name of their request, and say nothing else of it."""
        return self.ask.seed % 4 == 1

    def take(
        self, index: int, position: int, tokens: list[int], logprobs: Sequence[Logprobs | None], now: float
    ) -> None:
        if self.outcome:
            return  # it has gone away
        mine = self.received[index]
        if self.reasons[index] is not Reason.NONE:
            raise Violation(f"{self.ask.request_id}[{index}] got {len(tokens)} tokens after its end")
        if position != len(mine):
            raise Violation(f"{self.ask.request_id}[{index}] got position {position} after {len(mine)} tokens")
        mine.extend(tokens)
        self.logprobs[index].extend(logprobs)
        self.last_token_at = now

    def take_prompt(self, first: int, logprobs: Sequence[Logprobs | None]) -> None:
        """Logprobs of prompt tokens from this one on; a stream that is new tells them from the first."""
        if not self.outcome:
            if first > len(self.prompt_logprobs):
                raise Violation(f"{self.ask.request_id} got prompt logprobs from {first} on")
            self.prompt_logprobs[first:] = logprobs

    def finish(self, index: int, reason: Reason) -> None:
        if not self.outcome:
            self.reasons[index] = reason

    def judge(self, others: Sequence[str] = ()) -> None:
        """What it has is what the model says, and all of it if it is done; called once it has ended. `others`: weights
        that were there under the model's name, one of which may have said all of it instead."""
        failure: Violation | None = None
        for weights in (self.ask.model, *others):
            try:
                self._judge(weights)
                return
            except Violation as violation:
                failure = failure or violation
        assert failure is not None
        raise failure

    def _judge(self, weights: str) -> None:
        ask = self.ask
        if ask.prompt_logprobs and self.outcome == "done":
            self._judge_prompt(weights)
        if ask.beam_width:
            self._judge_beams(weights)
            return
        for index, mine in enumerate(self.received):
            name = f"{ask.request_id}[{index}] ({self.outcome})"
            wrong = follow(weights, ask.prompt, (ask.seed, index, self.num_noises), mine, self.end_one_in)
            if wrong is not None:
                raise Violation(f"{name} has a wrong token at {wrong}: {mine}")
            if ask.logprobs:
                self._judge_logprobs(name, index, weights)
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

    def _judge_logprobs(self, name: str, index: int, weights: str) -> None:
        """Each token has its own, whatever died: what was told without is drawn again. Only who came back may lack
        some, because another gateway may have been told its tokens by somebody who had not drawn them."""
        mine, got = self.received[index], self.logprobs[index]
        _, wanted = logprobs(weights, self.ask.prompt, mine)
        for at, (one, token, value) in enumerate(zip(got, mine, wanted, strict=True)):
            if one is None and not self.has_come_back:
                raise Violation(f"{name} got token {at} without its logprob")
            if one is not None and (one.token, one.logprob) != (token, value):
                raise Violation(f"{name} got token {at} with {one}, not {token} with {value}")

    def _judge_prompt(self, weights: str) -> None:
        """Each token of the prompt but the first has its logprob, for whom did not come back."""
        ask = self.ask
        wanted, _ = logprobs(weights, ask.prompt, [])
        judged = [(one.token, one.logprob) for one in self.prompt_logprobs[1:] if one is not None]
        if judged != list(zip(ask.prompt[1:], wanted, strict=True)) and not self.has_come_back:
            raise Violation(f"{ask.request_id} got prompt logprobs {self.prompt_logprobs}, not {wanted}")

    def _judge_beams(self, weights: str) -> None:
        """Each beam comes whole or not at all, and they are those that the search finds without any cluster. A client
        that leaves while it reads has the first of them."""
        ask = self.ask
        if self.outcome != "done" and not any(self.received):
            return
        wanted = []
        for noise in range(self.num_noises):
            found = search(weights, ask.prompt, ask.seed + noise, ask.beam_width, ask.max_tokens, self.end_one_in)
            wanted.append([list(each.tokens) for each in best(found, ask.n)])
        num = len(self.received) if self.outcome == "done" else sum(map(bool, self.received))
        if any(self.received[num:]) or self.received[:num] not in [beams[:num] for beams in wanted]:
            raise Violation(f"{ask.request_id} ({self.outcome}) found beams {self.received}, not {wanted}")

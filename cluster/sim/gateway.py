"""A simulated gateway: it submits for clients, puts tokens in their places by position, and answers seals.

Its log of a request is the truth about what the client has seen. Tokens of attempts up to the request's seal are
dropped; what overlaps with the log must agree with it. A request is open here until all its sequences have ended and
the scheduler has said Done, or until its client has gone and the scheduler has said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.hashing import BlockHasher
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Claim,
    Closed,
    Done,
    Event,
    GatewayState,
    HandOver,
    Ids,
    OpenRequest,
    Order,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Started,
    StopAt,
    Submit,
    Tokens,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.sim.client import Ask, Client, Violation
from cluster.sim.clock import Clock, Process
from cluster.sim.model import END_TOKEN, digest_of

GRACE_S = 3.0
"""So long a gateway keeps the request of a client whose connection broke: longer than words that are late."""

ROUTE_BITS = 32
"""A route is `life << ROUTE_BITS | number`."""


class Open:
    """One request at one gateway."""

    def __init__(self, client: Client, route: int, submit: Submit) -> None:
        self.client = client
        self.route = route
        self.submit = submit
        self.sealed = 0
        self.attempt = 0  # the last one that was heard of
        self.outputs: list[Ids] = [ids() for _ in range(client.num_sequences)]
        self.finished = [Reason.NONE] * client.num_sequences
        self.is_done = False
        self.is_cancelled = False
        self.turn = 0
        self.num_claims = 0
        self.is_adopting = False
        # The resume of a client that errs: it must be refused.
        self.is_wrong = False

    @property
    def is_read(self) -> bool:
        """Its client is here, and not at another gateway."""
        return self.client.route == (self.submit.gateway, self.route)

    @property
    def is_complete(self) -> bool:
        return Reason.NONE not in self.finished


class SimGateway(Process):
    """One front door. `tell` is its stream to the scheduler."""

    def __init__(
        self, name: str, life: int, clock: Clock, tell: Callable[[Event], None], block_size: int, key: bytes
    ) -> None:
        super().__init__(name, clock)
        self.life = life
        self.tell = tell
        self.num_stale = 0
        self.open: dict[int, Open] = {}
        self._block_size = block_size
        self._key = key
        # Routes of an earlier life of this gateway must mean nobody: tokens for them may still be under way.
        self._num_routes = life << ROUTE_BITS
        self._take: dict[type, Callable[..., None]] = {
            Accepted: self._on_accepted,
            Started: lambda order: None,
            Refused: self._on_refused,
            Seal: self._on_seal,
            HandOver: self._on_hand_over,
            Replay: lambda order: self._on_tokens(order.tokens),
            Done: self._on_done,
        }

    # -- clients

    def submit(self, client: Client) -> None:
        request = self._begin(client)
        self.tell(request.submit)
        ask = client.ask
        if ask.cancel_after_s is not None:
            self.after(ask.cancel_after_s, self._cancel, request)

    def resume(self, client: Client) -> None:
        """The client had another gateway, or a connection that broke; it has `client.received`."""
        if client.outcome:
            return
        client.num_resumes += 1
        held = [one for one in self.open.values() if one.client is client and not one.is_cancelled and not one.is_wrong]
        if not held:
            request = self._begin(client)
            request.is_adopting = True
            self.tell(Adopt(request.submit))
            return
        (request,) = held
        client.route = self.name, request.route
        if not request.is_adopting:
            request.num_claims += 1
            self.tell(self._claim(request))
        for index, reason in enumerate(request.finished):
            self._forward(request, index)
            if reason is not Reason.NONE:
                client.finish(index, reason)
        self._close_if_over(request)

    def _claim(self, request: Open) -> Claim:
        return Claim(request.client.ask.request_id, self.name, request.route)

    def leave(self, client: Client) -> None:
        """Its connection here broke: its request is kept for a while."""
        for request in self.open.values():
            if request.client is client and not request.is_wrong:
                self.after(GRACE_S, self._end_grace, request)

    def _end_grace(self, request: Open) -> None:
        if self.open.get(request.route) is request and not request.is_read and not request.is_cancelled:
            request.is_cancelled = True
            self.tell(self._given_up(request))
            self._close_if_over(request)

    def _given_up(self, request: Open) -> Cancel:
        return Cancel(request.client.ask.request_id, self.name, request.route)

    def err(self, client: Client) -> None:
        """The client comes back with another request under the same name."""
        if not client.outcome:
            route = client.route
            request = self._begin(client)
            client.route, request.is_wrong, request.is_adopting = route, True, True
            known = request.submit.sampling
            sampling = replace(known, max_tokens=99) if known.width else replace(known, n=known.n + 1)
            request.submit = replace(request.submit, sampling=sampling)
            self.tell(Adopt(request.submit))

    def _begin(self, client: Client) -> Open:
        self._num_routes += 1
        request = Open(client, self._num_routes, self._submit_of(client.ask, self._num_routes))
        self.open[request.route] = request
        client.route = self.name, request.route
        return request

    def _submit_of(self, ask: Ask, route: int) -> Submit:
        prompt = ids(ask.prompt)
        return Submit(
            request_id=ask.request_id,
            gateway=self.name,
            route=route,
            model=ask.model,
            tenant=ask.tenant,
            prompt=prompt,
            hashes=BlockHasher(self._key, digest_of(ask.model), ask.salt, self._block_size).prompt(prompt),
            sampling=sampling_of(ask),
            priority=ask.priority,
            salt=ask.salt,
            deadline=None if ask.deadline_s is None else self.clock.now + ask.deadline_s,
            digest=digest_of(ask.model),
        )

    def _cancel(self, request: Open) -> None:
        if request.route in self.open and not request.client.outcome:
            request.client.outcome = "cancelled"
            request.is_cancelled = True
            self.tell(Cancel(request.client.ask.request_id))

    # -- from workers

    def take_tokens(self, batch: list[Tokens]) -> None:
        for tokens in batch:
            self._on_tokens(tokens)

    def _on_tokens(self, tokens: Tokens) -> None:
        request = self.open.get(tokens.route)
        if request is None or request.finished[tokens.index] is not Reason.NONE:
            return  # it is over here
        if tokens.attempt <= request.sealed:
            self.num_stale += 1
            return
        request.attempt = max(request.attempt, tokens.attempt)
        log, index = request.outputs[tokens.index], tokens.index
        name = f"{request.client.ask.request_id}[{index}]"
        known = len(log) - tokens.position
        if known < 0:
            raise Violation(f"{self.name}: {name} attempt {tokens.attempt} jumps from {len(log)} to {tokens.position}")
        if log[tokens.position : tokens.position + len(tokens.ids)] != tokens.ids[:known]:
            raise Violation(f"{self.name}: {name} attempt {tokens.attempt} changes what was sent: {log} and {tokens}")
        log.extend(tokens.ids[known:])
        reason = tokens.reason
        cut = request.client.ask.stop_at
        if cut is not None and cut[0] == index and len(log) >= cut[1]:
            del log[cut[1] :]
            reason = Reason.STOP
            self.tell(StopAt(request.client.ask.request_id, index, cut[1]))
        self._forward(request, index)
        if reason is not Reason.NONE:
            request.finished[index] = reason
            if request.is_read:
                request.client.finish(index, reason)
            self._close_if_over(request)

    def _forward(self, request: Open, index: int) -> None:
        if not request.is_read:
            return
        log = request.outputs[index]
        has = len(request.client.received[index])
        if len(log) > has:
            request.client.take(index, has, list(log[has:]), self.clock.now)

    # -- from the scheduler

    def take_order(self, order: Order) -> None:
        self._take[type(order)](order)

    def _on_accepted(self, accepted: Accepted) -> None:
        request = self.open.get(accepted.route)
        if request is not None:
            if request.is_wrong:
                raise Violation(f"{request.client.ask.request_id} was resumed with other parameters")
            request.client.accepted = True
            request.turn = accepted.turn
            request.is_adopting = False
            request.num_claims = max(0, request.num_claims - 1)

    def _on_refused(self, refused: Refused) -> None:
        request = self.open.pop(refused.route, None)
        if request is None or request.client.outcome or not request.is_read:
            return
        if refused.code == "NOT_FOUND" and request.client.num_resumes:
            # The cluster knows the request no more: it is asked again, whole.
            request.client.num_repeats += 1
            self.submit(request.client)
            return
        if refused.code == "ALREADY_EXISTS" and request.client.num_repeats:
            # A scheduler that has just started cannot tell yet whose it is; the client tries again.
            self.after(0.3, self.resume, request.client)
            return
        request.client.outcome = f"refused {refused.code}"
        request.client.detail = refused.detail

    def _on_seal(self, seal: Seal) -> None:
        request, place = self.open.get(seal.route), (seal.request_id, seal.gateway, seal.route)
        if request is None:
            self.tell(Sealed(*place, seal.attempt, (), ()))
            return
        request.sealed = max(request.sealed, seal.attempt)
        request.attempt = max(request.attempt, seal.attempt)
        outputs = tuple(ids(log) for log in request.outputs)
        self.tell(Sealed(*place, seal.attempt, outputs, tuple(request.finished)))

    def _on_hand_over(self, order: HandOver) -> None:
        request = self.open.get(order.route)
        if request is not None and request.num_claims:
            return  # its client came back here since
        self.open.pop(order.route, None)
        outputs = tuple(ids(log) for log in request.outputs) if request is not None else ()
        finished = tuple(request.finished) if request is not None else ()
        self.tell(Sealed(order.request_id, order.gateway, order.route, 0, outputs, finished))
        if request is not None and request.is_read:
            # A word that it had said before, elsewhere, came late.
            self.after(0.02, self._resume_again, request)

    def _resume_again(self, request: Open) -> None:
        if request.is_read:
            self.resume(request.client)

    def _on_done(self, done: Done) -> None:
        request = self.open.get(done.route)
        if request is None:
            # A route of an earlier life may belong to a client who has come back and asks under the same name.
            if done.route >> ROUTE_BITS == self.life:
                self.tell(Closed(done.request_id, self.name, done.route))
            return
        request.is_done = True
        self._close_if_over(request)

    def _close_if_over(self, request: Open) -> None:
        """What nobody reads is kept for its client until the end of its grace."""
        if request.is_done and (request.is_cancelled or (request.is_complete and request.is_read)):
            del self.open[request.route]
            if not request.client.outcome and request.is_read:
                request.client.outcome = "done"
            self.tell(Closed(request.client.ask.request_id, self.name, request.route))

    # -- a new scheduler

    def state(self) -> GatewayState:
        requests = tuple(
            OpenRequest(
                request.submit,
                # A sealed attempt is over, wherever it may still run.
                max(request.attempt, request.sealed + 1 if request.sealed else 0),
                tuple(ids(log) for log in request.outputs),
                tuple(request.finished),
                request.turn,
            )
            for request in self.open.values()
            if not request.is_adopting
        )
        return GatewayState(self.name, requests)

    def repeated(self) -> list[Event]:
        """What was on its way to the old scheduler may be lost, and a state does not say it."""
        events: list[Event] = []
        for request in self.open.values():
            if request.is_cancelled:
                events.append(self._given_up(request))
            elif request.is_adopting:
                events.append(Adopt(request.submit))
            elif request.num_claims:
                request.num_claims = 1
                events.append(self._claim(request))
        return events


def sampling_of(ask: Ask) -> SamplingParams:
    """The settings as a gateway would have resolved them."""
    return SamplingParams(
        n=ask.n,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=ask.seed,
        max_tokens=ask.max_tokens,
        min_tokens=0,
        beam_width=ask.beam_width or None,
        length_penalty=1.0,
        early_stopping=False,
        eos_token_ids=(END_TOKEN,),
    )

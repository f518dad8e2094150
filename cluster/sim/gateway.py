"""A simulated gateway: the door that ships, with made-up clients at its streams and made-up text.

Its shell keeps virtual time, finds stop strings where a client's wish says so, and reads for streams as a connection
does: also for one whose client has gone, until that is noticed. All of the protocol is the door's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from cluster.errors import (
    Aborted,
    AlreadyExists,
    InvalidRequest,
    NotFound,
    QueueFull,
    QuireError,
    Unavailable,
    WorkFailed,
)
from cluster.gateway.door.check import check
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Begun, Chunk, Entry, Finished, Part, PromptChunk, Reader
from cluster.gateway.door.kept import DoorSettings
from cluster.gateway.door.notices import Notice
from cluster.gateway.door.unread import UnreadBounds
from cluster.hashing import BlockHasher
from cluster.messages import Cancel, Event, Found, Ids, Pin, Replay, Submit, Tokens, ids
from cluster.messages.resume import REPLACED
from cluster.sampling import SamplingParams
from cluster.sim.client import GRACE_S, Ask, SimClient, Violation, Warm
from cluster.sim.clock import Clock, Process
from cluster.sim.model import END_TOKEN, STEP_FAILED, digest_of

AGAIN_S = 0.1
"""A client that was sent away comes back after this."""

REST_S = 0.05
"""A slow reader takes a little this often."""

CHECK_EVERY = 8


class SimGateway(Process):
    """One front door. `tell` is its stream to the scheduler."""

    def __init__(
        self,
        name: str,
        life: int,
        clock: Clock,
        tell: Callable[[Event], None],
        names: tuple[int, bytes],
        unread: UnreadBounds,
    ) -> None:
        """`names`: how blocks are named, their size and the key."""
        super().__init__(name, clock)
        self.life = life
        self.tell = tell
        self.door = Door(DoorSettings(name, life, unread=unread))
        # Whose request each route is; and routes under which a client asked for what it never began.
        self._clients: dict[int, SimClient] = {}
        self._wrong: set[int] = set()
        # Who named a request and waits until it is found, by route, with how often it had sent something by then.
        self._looking: dict[int, tuple[SimClient, int]] = {}
        # Streams whose readers are slow, and will look again.
        self._resting: set[int] = set()
        # Models that were unloaded: of these not every prefix is kept.
        self.unloaded: Collection[str] = ()
        self.replaced: Collection[str] = ()
        # Requests that were in a step which a device refused.
        self.failed: Collection[str] = ()
        # Requests of which too much was unread.
        self.cut_off: set[str] = set()
        # Whether this model is served; and whether this life was told so. Of the first lives none begins before.
        self.serves: Callable[[str], bool] = lambda model: True
        self._is_told = life == 1
        # Called when a stop string is found, before anybody is told.
        self.at_a_stop: Callable[[], None] = lambda: None
        # Whether the scheduler is there; who makes its stream to it says how that is known.
        self.hears_scheduler: Callable[[], bool] = lambda: False
        self._block_size, self._key = names
        self._rings_at = float("inf")
        self._num_events = 0

    # -- clients

    def submit(self, client: SimClient) -> None:
        client.num_sent += 1
        client.is_resuming = False
        if not (self._is_told and self.serves(client.ask.model)):
            self._answer(client, Unavailable(f"no worker of model {client.ask.model} is here yet", 1.0))
            return
        try:
            reader = self.door.ask(self._submit_of(client.ask), client.ask.grace_s, self.clock.now)
        except AlreadyExists as error:
            self._answer(client, error)
            return
        self._connect(client, reader)
        if client.ask.cancel_after_s is not None and client.num_sent == 1:
            self.after(client.ask.cancel_after_s, self._cancel, client)

    def resume(self, client: SimClient) -> None:
        """The client had another gateway, or a connection that broke; it has `client.received`."""
        if client.outcome:
            return
        client.num_sent += 1
        client.is_resuming = client.has_come_back = True
        entry = self.door.by_id.get(client.ask.request_id)
        if client.names_only and (entry is None or entry.is_asking):
            self._looking[self.door.find(client.ask.request_id)] = client, client.num_sent
            self._obey()
        else:
            self._go_on(client, self._submit_of(client.ask))

    def _go_on(self, client: SimClient, asked: Submit) -> None:
        positions = [len(mine) for mine in client.received]
        self._connect(client, self.door.resume(asked, positions, client.ask.grace_s, self.clock.now))

    def _take_found(self, route: int, found: Found | QuireError) -> None:
        client, num_sent = self._looking.pop(route)
        if client.outcome or client.gateway != self.name or client.num_sent != num_sent:
            return  # it has gone on elsewhere
        if isinstance(found, NotFound):
            # Its gateway and its scheduler died at once: who asked says again what it was.
            self._go_on(client, self._submit_of(client.ask))
        elif isinstance(found, QuireError):
            self._answer(client, found)
        else:
            deadline = self.clock.now + found.rest_s if found.rest_s else None
            wanted = self._submit_of(client.ask)
            if client.ask.model in self.replaced:
                # It may have begun with the others.
                wanted = replace(wanted, digest=found.submit.digest)
            if replace(found.submit, gateway="", route=0, hashes=wanted.hashes, deadline=wanted.deadline) != wanted:
                raise Violation(f"{client.ask.request_id} was found otherwise than it was asked: {found.submit}")
            self._go_on(client, replace(found.submit, deadline=deadline))

    def _connect(self, client: SimClient, reader: Reader) -> None:
        client.gateway, client.stream = self.name, reader
        self._clients[reader.entry.route] = client
        self._obey()

    def leave(self, stream: object) -> None:
        """A connection is noticed to be broken."""
        if isinstance(stream, Reader):
            self.door.leave(stream, self.clock.now, is_final=False)
            self._obey()

    def err(self, client: SimClient) -> None:
        """The client comes back with another request under the same name."""
        if client.outcome:
            return
        asked = self._submit_of(client.ask)
        known = asked.sampling
        sampling = replace(known, max_tokens=99) if known.width else replace(known, n=known.n + 1)
        try:
            wrong = self.door.resume(replace(asked, sampling=sampling), [0] * sampling.n, GRACE_S, self.clock.now)
        except InvalidRequest:
            return
        self._wrong.add(wrong.entry.route)
        self._clients[wrong.entry.route] = client
        self._obey()

    def _cancel(self, client: SimClient) -> None:
        if not client.outcome:
            client.outcome = "cancelled"
            self.door.cancel(client.ask.request_id, self.clock.now)
            self._obey()

    def _submit_of(self, ask: Ask) -> Submit:
        prompt = ids(ask.prompt)
        return Submit(
            request_id=ask.request_id,
            gateway="",
            route=0,
            model=ask.model,
            tenant=ask.tenant,
            prompt=prompt,
            hashes=BlockHasher(self._key, digest_of(ask.model), ask.salt, self._block_size).prompt(prompt),
            sampling=sampling_of(ask),
            priority=ask.priority,
            salt=ask.salt,
            deadline=None if ask.deadline_s is None else self.clock.now + ask.deadline_s,
            digest=digest_of(ask.model),
            grace_s=ask.grace_s,
            look=f"look of {ask.request_id}",
        )

    # -- prefixes

    def warm(self, warm: Warm, name: str) -> None:
        """It is answered, or nobody waits for it any more."""
        prompt = ids(warm.prompt)
        hasher = BlockHasher(self._key, digest_of(warm.model), warm.salt, self._block_size)
        names, until = hasher.prompt(prompt), self.clock.now + warm.keeps_s
        pin = Pin(name, "", 0, warm.model, warm.tenant, prompt, names, until, warm.salt, digest_of(warm.model))
        route = self.door.pin(pin, self.clock.now)
        self._obey()
        self.after(warm.waits_s, self._leave_pin, route)

    def _leave_pin(self, route: int) -> None:
        self.door.leave_pin(route)
        self._obey()

    # -- from workers and from the scheduler

    def take_tokens(self, batch: list[Tokens]) -> None:
        for tokens in batch:
            self._feed(tokens)
        self._obey()

    def _feed(self, tokens: Tokens) -> None:
        new = self.door.fresh(tokens, self.clock.now)
        if new is not None:
            self.door.take_tokens(tokens, new, self._cut(tokens, new), self.clock.now)

    def _cut(self, tokens: Tokens, new: Ids) -> int | None:
        """Where the text of these tokens has a stop string."""
        stop_at = self._clients[tokens.route].ask.stop_at
        if stop_at is None or stop_at[0] != tokens.index:
            return None
        last = tokens.position + len(tokens.ids)
        if not last - len(new) < stop_at[1] <= last:
            return None
        self.at_a_stop()
        return stop_at[1]

    def take_order(self, order: Notice) -> None:
        if isinstance(order, Replay):
            self._feed(order.tokens)
        self.door.take(order, self.clock.now)
        self._obey()

    def meet(self, *, wants_state: bool) -> None:
        self._is_told = True
        self.door.meet(self.clock.now, wants_state=wants_state)
        self._obey()

    # -- what the door orders

    def _obey(self) -> None:
        self._num_events += 1
        if self._num_events % CHECK_EVERY == 0:
            check(self.door)
        orders = self.door.take_orders()
        for event in orders.events:
            if isinstance(event, Cancel) and event.code == "RESOURCE_EXHAUSTED":
                self.cut_off.add(event.request_id)
            self.tell(event)
        for entry in orders.news.values():
            if entry.route in self._wrong:
                self._look_at_wrong(entry)
            elif entry.route not in self._resting:
                self._read(entry)
            if entry.is_gone and entry.route not in self._resting:
                self._clients.pop(entry.route, None)
        for _, refusal in orders.pins:
            is_wrong = isinstance(refusal, AlreadyExists | NotFound | WorkFailed | Aborted)
            if is_wrong and not (self.unloaded or self.replaced or STEP_FAILED in str(refusal)):
                raise Violation(f"{self.name}: a prefix was not kept: {refusal}")
        for route, found in orders.found:
            self._take_found(route, found)
        due = self.door.next_deadline
        if due is not None and due < self._rings_at:
            self._rings_at = due
            self.after(max(0.0, due - self.clock.now), self._ring)

    def _ring(self) -> None:
        self._rings_at = float("inf")
        self.door.tick(self.clock.now, is_met=self.hears_scheduler())
        self._obey()

    def _look_at_wrong(self, entry: Entry) -> None:
        if entry.accepted is not None:
            raise Violation(f"{entry.request_id} was resumed with other parameters")
        if entry.failure is not None:
            self._wrong.discard(entry.route)

    def _read(self, entry: Entry) -> None:
        """As a connection does: for a client that is gone as well, until that is noticed."""
        reader, client = entry.reader, self._clients[entry.route]
        is_replaced = REPLACED in str(entry.failure) and bool(self.replaced)
        is_excused = is_replaced or entry.request_id in self.failed
        is_failed = isinstance(entry.failure, WorkFailed | Aborted) and not is_excused
        if is_failed and not client.outcome and not entry.is_cancelled:
            raise Violation(f"{self.name} gave {entry.request_id} up: {entry.failure}")
        was_told = reader.is_told
        if was_told or not entry.is_read:
            return
        parts, _ = self.door.read(reader, client.reads_bytes)
        for part in parts:
            if client.stream is reader:
                self._hand_out(client, part)
        if reader.has_more:
            self._rest(entry)
        elif reader.is_told:
            if entry.failure is not None and client.stream is reader:
                self._answer(client, entry.failure)
            self.after(0.0, self.leave, reader)

    def _rest(self, entry: Entry) -> None:
        """A reader that takes a little at a time."""

        def again() -> None:
            self._resting.discard(entry.route)
            self._read(entry)
            if entry.is_gone and entry.route not in self._resting:
                del self._clients[entry.route]
            self._obey()

        self._resting.add(entry.route)
        self.after(REST_S, again)

    def _hand_out(self, client: SimClient, part: Part) -> None:
        if isinstance(part, Chunk):
            tokens = list(part.sequence.ids[part.first : part.last])
            told = part.sequence.logprobs or [None] * part.last
            client.take(part.sequence.index, part.first, tokens, told[part.first : part.last], self.clock.now)
        elif isinstance(part, PromptChunk):
            client.take_prompt(part.first, part.sequence.prompt_logprobs[part.first : part.last])
        elif isinstance(part, Finished):
            client.finish(part.sequence.index, part.sequence.reason)
        elif isinstance(part, Begun):
            client.accepted = True
        elif not client.outcome:
            client.outcome = "done"

    def _answer(self, client: SimClient, error: QuireError) -> None:
        """What the client that ships does when its request is refused (`cluster/client/stream.py`)."""
        client.stream = None
        if client.outcome:
            return
        if isinstance(error, Unavailable):
            is_known = client.accepted or any(client.received)
            self._try_again(client, self.resume if is_known else self.submit)
        elif isinstance(error, QueueFull) and not client.is_resuming and "unread" not in str(error):
            # It is patient: asked again for as long as the queue is full. What was accepted is never refused so.
            if error.retry_after_s <= 0.0 or "requests wait" not in str(error):
                raise Violation(f"{client.ask.request_id} is not told why it is refused, or when to ask again: {error}")
            self._try_again(client, self.submit, error.retry_after_s + 0.01 * (client.ask.seed % 50))
        elif isinstance(error, AlreadyExists) and not client.is_resuming and client.num_sent > 1:
            # An earlier try got through after all.
            self._try_again(client, self.resume)
        elif isinstance(error, NotFound) and client.is_resuming and not any(client.received):
            # The cluster knows the request no more: it is asked again, whole.
            self._try_again(client, self.submit)
        elif isinstance(error, NotFound) and client.is_resuming:
            client.outcome = "lost"
        else:
            client.outcome = f"refused {error.grpc_status}"
            client.detail = str(error)

    def _try_again(self, client: SimClient, send: Callable[[SimClient], None], delay_s: float = AGAIN_S) -> None:
        """After a while, unless the client has gone or went on elsewhere by then."""
        num_sent = client.num_sent

        def again() -> None:
            if not client.outcome and client.gateway == self.name and client.num_sent == num_sent:
                send(client)

        self.after(delay_s, again)


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
        logprobs=1 if ask.logprobs else None,
        prompt_logprobs=0 if ask.prompt_logprobs else None,
        length_penalty=1.0,
        early_stopping=False,
        eos_token_ids=(END_TOKEN,),
    )

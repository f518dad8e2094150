"""The embedded engine: `LLM(...).generate(...)` in one process, without Ray or gRPC.

Names are those of vLLM's offline API. A prompt is checked and tokenized here, handed to the real scheduler, and its
tokens come back from the real worker (`cluster/offline/embedded.py`). An LLM belongs to one thread at a time.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from cluster.errors import ConfigError, InvalidRequest, NeverFits, QuireError
from cluster.gateway.models import TextModel
from cluster.gateway.texts import Texts
from cluster.offline import prompts as prompt_forms
from cluster.offline.embedded import Embedded, Live
from cluster.offline.outputs import RequestOutput, StreamOutput
from cluster.offline.progress import Progress
from cluster.offline.results import OfflineResults
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings, WorkerSettings
from cluster.wire.chat import chat_of
from worker.model.tokenizer import load_tokenizer
from worker.ranks.local import Ranks

# vLLM's names for the same settings.
_ALIASES = {
    "max_num_seqs": "max_batch",
    "max_num_batched_tokens": "token_budget",
    "enable_prefix_caching": "prefix_caching",
    "num_gpu_blocks_override": "kv_blocks",
}
# vLLM's settings that ask for what is the case here anyhow.
_IGNORED = {"pipeline_parallel_size": 1, "trust_remote_code": False, "enforce_eager": True}

SETTLE_S = 60
# Slots that a lease has left when it is renewed. In one process the scheduler is near, but each look at it costs what a
# small model's step does: with these many steps pass between two looks.
AHEAD = 12

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
Prompts: TypeAlias = Prompt | Sequence[Prompt]


class LLM:
    """A model in memory, ready to write."""

    def __init__(
        self,
        model: str = "demo",
        *,
        seed: int | None = None,
        quiet: bool = False,
        scheduler: SchedulerSettings | None = None,
        tensor_parallel_size: int = 1,
        **settings: Any,
    ) -> None:
        """`settings` are the fields of `WorkerSettings`, or vLLM's names for them. `seed` fixes the draws of requests
        that name none. With `tensor_parallel_size` K the model lies in slices in K processes, of which this is
        one, until `close`. Raises ModelError or ConfigError."""
        chosen = _worker_settings(model, quiet, settings)
        if scheduler is None:
            scheduler = SchedulerSettings(prefix_caching=chosen.prefix_caching, ahead=AHEAD)
        say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
        self._ranks = Ranks(chosen, tensor_parallel_size)
        self._worker = self._ranks.start(say)
        self._engine = Embedded(self._worker, scheduler)
        parts = self._worker.parts
        loaded = parts.model.loaded
        self._text = TextModel(
            chosen.model,
            load_tokenizer(loaded.folder),
            vocab_size=loaded.vocab_size,
            max_model_len=parts.max_model_len,
            defaults=loaded.defaults,
        )
        self._quiet = quiet
        self._seeds = random.Random(seed) if seed is not None else random.SystemRandom()

    def get_tokenizer(self) -> Any:
        """The model's tokenizer; None if its folder has none."""
        return self._text.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request gets that sets nothing, under the model's generation config."""
        return SamplingParams()

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Writes for each prompt and returns when all are done, in the order of the prompts.

        A prompt is text, token ids or {"prompt_token_ids": [...]}. All prompts and settings are checked before anything
        runs; InvalidRequest names the first that is wrong. What fails later ends with its `error` set and the others go
        on; if nothing is left to hand back, the first error is raised.
        """
        given, requests = self._make(prompts, sampling_params, keeps_pieces=False)
        results = OfflineResults(self._text, given)
        finished: list[RequestOutput | None] = [None] * len(requests)
        started = self._worker.num_sampled
        num_done = 0
        failed: list[QuireError] = []
        with Progress(len(requests), wanted=use_tqdm and not self._quiet) as progress:
            for done in self._run(requests, priority, eager=False):
                for live in done:
                    finished[live.prompt_index] = results.output(live)
                    failed += [error] if (error := results.error(live)) else []
                num_done += len(done)
                progress.update(num_done, self._worker.num_sampled - started)
        if failed and len(failed) == len(requests):
            raise failed[0]
        return [output for output in finished if output is not None]

    def stream(
        self, prompts: Prompts, sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Generator[StreamOutput, None, None]:
        """Writes for each prompt and yields new tokens of any of them as they come."""
        given, requests = self._make(prompts, sampling_params, keeps_pieces=True)
        results = OfflineResults(self._text, given)
        for _ in self._run(requests, None, eager=True):
            for live in requests:
                yield from results.news(live)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Like `generate` for conversations, written by the model's chat template. `tools` are in OpenAI's shape; the
        text of an answer has calls in the model's own form."""
        prompts = []
        for conversation in prompt_forms.conversations(messages):
            chat = chat_of(conversation, "messages", tools)
            chat.add_generation_prompt = add_generation_prompt
            prompts.append({"prompt_token_ids": list(self._text.encode_chat(chat))})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def close(self) -> None:
        """Ends the processes of the other ranks, if there are any."""
        self._ranks.close()

    def load_stats(self) -> dict[str, float]:
        """Counters since the engine was made: steps, tokens, decisions, seconds by part of a step, memory."""
        worker, scheduler = self._worker, self._engine.scheduler
        stats: dict[str, float] = {
            "steps": worker.num_steps,
            "launches": worker.num_launches,
            "output tokens": worker.num_sampled,
            "blocks": worker.parts.pool.num_blocks,
            "waiting": scheduler.waiting.num_waiting(worker.settings.name),
            "running": len(worker.desk.rows.row_of),
            "seconds scheduling": self._engine.scheduling_seconds,
        }
        stats |= {f"seconds {part}": seconds for part, seconds in worker.seconds.items()}
        stats |= dict(scheduler.counters)
        return stats

    # -- one call

    def _make(
        self, prompts: Prompts, sampling_params: SamplingParams | Sequence[SamplingParams] | None, keeps_pieces: bool
    ) -> tuple[list[str | None], list[Live]]:
        """All requests of a call, checked."""
        listed = prompt_forms.listed(prompts)
        settings = prompt_forms.one_each(sampling_params, len(listed))
        texts: list[str | None] = []
        requests = []
        for i, (prompt, params) in enumerate(zip(listed, settings, strict=True)):
            text, tokens = prompt_forms.tokens_of(prompt, f"prompts[{i}]", self._text)
            texts.append(text)
            requests.append(self._request(i, tokens, params, keeps_pieces))
        return texts, requests

    def _request(self, i: int, tokens: list[int], params: SamplingParams, keeps_pieces: bool) -> Live:
        field = f"prompts[{i}]"
        if not tokens:
            raise InvalidRequest(field, "is empty", "give at least one token")
        self._text.check_ids(field, tokens)
        max_model_len = self._worker.parts.max_model_len
        if len(tokens) >= max_model_len:
            raise NeverFits(field, len(tokens) + 1, max_model_len, "tokens", "shorten the prompt or raise kv_memory")
        resolved = self._text.resolve(params, len(tokens), max_model_len, self._seeds.getrandbits(63))
        self._text.check_structure(resolved)
        self._check_room(field, len(tokens), resolved)
        wants_text = resolved.detokenize and self._text.tokenizer is not None
        # Text that nobody reads before the end is made at the end, at once.
        cuts = wants_text and (keeps_pieces or bool(resolved.stop))
        cutters = self._text.cutters(resolved) if cuts else _no_cutter
        return Live(i, tokens, resolved, Texts(resolved.n, cutters))

    def _check_room(self, field: str, num_prompt: int, params: SamplingParams) -> None:
        """Sequences of one request are resident together, so that all their blocks must fit at once."""
        size, num_blocks = self._worker.settings.block_size, self._worker.parts.pool.num_blocks
        length = num_prompt + (params.max_tokens or 1) - 1
        name, count, unit = ("beam_width", params.width, "beams") if params.width else ("n", params.n, "sequences")
        shared = num_prompt // size if count > 1 else 0
        needed = shared + count * (-(-length // size) - shared)
        if needed > num_blocks:
            raise NeverFits(field, needed, num_blocks, "blocks", f"lower max_tokens or {name}, or raise kv_memory")
        if count > self._worker.settings.max_batch:
            raise NeverFits(f"sampling.{name}", count, self._worker.settings.max_batch, unit, "raise max_batch")
        if params.width > self._worker.parts.token_budget:
            raise NeverFits(
                f"sampling.{name}", count, self._worker.parts.token_budget, "tokens of a step", "raise token_budget"
            )

    def _run(self, requests: list[Live], priority: Sequence[int] | None, eager: bool) -> Iterator[list[Live]]:
        """Runs the requests; yields after every turn those that are done since the last. Cancels what is left if the
        caller goes away."""
        engine = self._engine
        if priority is not None and len(priority) != len(requests):
            raise InvalidRequest(
                "priority", f"has {len(priority)} entries for {len(requests)} prompts", "give one each"
            )
        order = requests if priority is None else sorted(requests, key=lambda live: priority[live.prompt_index])
        waiting = deque(order)
        open_: dict[int, Live] = {}
        # More than this need not be with the scheduler: the rest would only wait there.
        ahead = 2 * self._worker.settings.max_batch
        eager = eager or any(live.sampling.stop for live in requests)
        try:
            while waiting or open_:
                while waiting and len(open_) < ahead:
                    live = waiting.popleft()
                    open_[live.prompt_index] = live
                    engine.submit(live, priority[live.prompt_index] if priority is not None else 0)
                engine.turn(eager=eager)
                done = [live for live in open_.values() if live.done]
                for live in done:
                    del open_[live.prompt_index]
                yield done
        finally:
            self._abandon(open_)

    def _abandon(self, open_: dict[int, Live]) -> None:
        """Cancels what the caller no longer waits for, and returns when nothing of it holds a block."""
        if sys.is_finalizing():
            # A stream that was left in the middle and is let go of with its module: other ranks have gone already.
            return
        for live in open_.values():
            self._engine.cancel(live)
        deadline = time.monotonic() + SETTLE_S
        while self._engine.holds(open_.values()):
            assert time.monotonic() < deadline, f"cancelled requests did not end within {SETTLE_S} s"
            self._engine.turn(eager=True)


def _no_cutter() -> None:
    """Where no text is cut while it is written."""


def _worker_settings(model: str, quiet: bool, given: dict[str, Any]) -> WorkerSettings:
    known = {field.name for field in fields(WorkerSettings)}
    chosen: dict[str, Any] = {"hash_key": secrets.token_bytes(16), "show_progress": not quiet and sys.stderr.isatty()}
    for name, value in given.items():
        if name in _IGNORED:
            if value not in (_IGNORED[name], None) and name != "enforce_eager":
                raise ConfigError(f"{name} is {value!r}; the embedded engine takes only {_IGNORED[name]!r}")
            continue
        field = _ALIASES.get(name, name)
        if field not in known:
            raise ConfigError(f"LLM has no setting {name!r}; it has {', '.join(sorted(known | set(_ALIASES)))}")
        chosen[field] = value
    return WorkerSettings(model=str(model), **chosen)

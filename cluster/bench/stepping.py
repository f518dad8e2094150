"""The embedded engine step by step, for benchmarks that look at it between two steps or send requests as time goes on.

`LLM.generate` runs to the end and `LLM.stream` yields where there is text; here the caller turns. Scheduler, desk and
worker are those of `LLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.gateway.models import TextModel
from cluster.gateway.texts import Texts
from cluster.offline.embedded import Embedded, Live
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings, WorkerSettings
from worker.worker import Worker


class Stepping:
    """A new worker and scheduler. `settings` are fields of `WorkerSettings`."""

    def __init__(self, model: str, scheduler: SchedulerSettings, **settings: Any) -> None:
        chosen = WorkerSettings(model, hash_key=b"bench", show_progress=False, **settings)
        self._worker = Worker(chosen, say=lambda line: None)
        self._engine = Embedded(self._worker, scheduler)
        loaded = self._worker.parts.model.loaded
        self._longest = self._worker.parts.max_model_len
        self._text = TextModel(
            model, None, vocab_size=loaded.vocab_size, max_model_len=self._longest, defaults=loaded.defaults
        )
        self._num_asked = 0

    def ask(self, prompt: Sequence[int], params: SamplingParams) -> Live:
        """It takes part from the next turn on; it is `done` when all its sequences have ended."""
        resolved = self._text.resolve(params, len(prompt), self._longest, self._num_asked)
        live = Live(self._num_asked, list(prompt), resolved, Texts(resolved.n, lambda: None))
        self._num_asked += 1
        self._engine.submit(live)
        return live

    def turn(self, *, eager: bool) -> None:
        """The scheduler decides and the worker runs a step; without `eager` several at once."""
        self._engine.turn(eager=eager)

    def tables(self) -> list[list[int]]:
        """The blocks of all sequences and beams, in order, as far as they are written: shared ones stand in each."""
        return self._worker.desk.tables()

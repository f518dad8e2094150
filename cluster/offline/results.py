"""Turns the log of a request into what the embedded engine's caller gets: outputs, stream pieces, text, logprobs.

`cluster/offline/engine.py` asks for one output when a request is done, or for the news of a stream after each turn.
The log is the truth; this file only words it.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.errors import QuireError, WorkFailed
from cluster.gateway.door.log import SequenceLog
from cluster.gateway.models import TextModel
from cluster.messages import Logprobs, Reason
from cluster.offline.embedded import Live
from cluster.offline.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamOutput

_FINISH = {Reason.STOP: "stop", Reason.LENGTH: "length", Reason.DROPPED: "abort", Reason.FAILED: "error"}


class OfflineResults:
    """Of one call of the engine; `texts` are the prompts that came as text."""

    def __init__(self, text: TextModel, texts: list[str | None]) -> None:
        self._text = text
        self._texts = texts
        # How many tokens of each stream were handed out, by prompt and sequence; -1: its end was.
        self._sent: dict[tuple[int, int], int] = {}

    def output(self, live: Live) -> RequestOutput:
        """All of a request that is done, or what became of one that failed."""
        sequences = live.log.sequences
        error = self.error(live)
        if error is not None:
            # A request that was refused has sequences that nobody ended.
            sequences = [sequence for sequence in sequences if sequence.reason is not Reason.NONE]
        prompt_logprobs = next((s.prompt_logprobs for s in sequences if s.prompt_logprobs), None)
        return RequestOutput(
            request_id=live.request_id,
            prompt=self._texts[live.prompt_index],
            prompt_token_ids=live.prompt,
            prompt_logprobs=None if prompt_logprobs is None else [self._candidates(one) for one in prompt_logprobs],
            outputs=[self._completion(sequence, live) for sequence in sequences],
            finished=True,
            metrics=RequestMetrics(
                live.first_token_s, live.finished_s, live.cached_tokens, live.preemptions, len(live.prompt)
            ),
            error=None if error is None else str(error),
        )

    def error(self, live: Live) -> QuireError | None:
        """What made a request fail that is done; None if nothing did. It names the prompt."""
        failed = next((one for one in live.log.sequences if one.reason is Reason.FAILED), None)
        return live.error if failed is None else WorkFailed(f"prompts[{live.prompt_index}]: {failed.detail}")

    def news(self, live: Live) -> Iterator[StreamOutput]:
        """What each sequence of a stream has said since this was last called. The only prompt of a call raises what
        made it fail; one of several ends as "error" and the others go on."""
        if live.error is not None and all(one.reason is Reason.NONE for one in live.log.sequences):
            if len(self._texts) == 1:
                raise live.error
            if self._sent.setdefault((live.prompt_index, -1), 0) == 0:
                self._sent[live.prompt_index, -1] = -1
                yield StreamOutput(live.prompt_index, 0, "", [], "error", error=str(live.error))
            return
        for sequence in live.log.sequences:
            key = (live.prompt_index, sequence.index)
            sent, known = self._sent.get(key, 0), len(sequence.ids)
            ended = sequence.reason is not Reason.NONE
            if sent < 0 or (known == sent and not ended):
                continue
            if sequence.reason is Reason.FAILED and len(self._texts) == 1:
                raise WorkFailed(f"prompts[{live.prompt_index}]: {sequence.detail}")
            text = live.texts.text(sequence.index, sent, known)
            if ended:
                text += live.texts.rest(sequence.index)
            yield StreamOutput(
                prompt_index=live.prompt_index,
                index=sequence.index,
                text=text,
                token_ids=list(sequence.ids[sent:known]),
                finish_reason=_FINISH[sequence.reason] if ended else None,
                stop_reason=_stop_reason(sequence, live) if ended else None,
                logprobs=self._logprobs(sequence, sent),
                error=sequence.detail if sequence.reason is Reason.FAILED else None,
                detail=self._why_full(sequence, live),
            )
            self._sent[key] = -1 if ended else known

    def _completion(self, sequence: SequenceLog, live: Live) -> CompletionOutput:
        token_ids = list(sequence.ids)
        own = [one.logprob for one in sequence.logprobs or () if one is not None]
        return CompletionOutput(
            index=sequence.index,
            text=self._whole_text(sequence, live, token_ids),
            token_ids=token_ids,
            cumulative_logprob=None if sequence.logprobs is None else sum(own),
            logprobs=self._logprobs(sequence, 0),
            finish_reason=_FINISH[sequence.reason],
            stop_reason=_stop_reason(sequence, live),
            score=sequence.score if live.sampling.width else None,
            detail=self._why_full(sequence, live),
        )

    def _why_full(self, sequence: SequenceLog, live: Live) -> str:
        if sequence.reason is not Reason.LENGTH:
            return ""
        return self._text.why_full(len(live.prompt), live.sampling, self._text.max_model_len)

    def _whole_text(self, sequence: SequenceLog, live: Live, token_ids: list[int]) -> str:
        params = live.sampling
        if self._text.tokenizer is None or not params.detokenize:
            return ""
        if live.texts.sequences:
            return live.texts.text(sequence.index, 0, len(token_ids)) + live.texts.rest(sequence.index)
        if sequence.reason is Reason.STOP and token_ids and not params.include_stop_str_in_output:
            token_ids = token_ids[:-1]
        return self._text.decode(token_ids, params.skip_special_tokens)

    def _logprobs(self, sequence: SequenceLog, first: int) -> list[dict[int, Logprob]] | None:
        if sequence.logprobs is None:
            return None
        return [self._candidates(one) or {} for one in sequence.logprobs[first:]]

    def _candidates(self, one: Logprobs | None) -> dict[int, Logprob] | None:
        if one is None:
            return None
        found = {one.token: Logprob(one.logprob, one.rank, self._word(one.token))}
        for rank, (token, logprob) in enumerate(one.top, 1):
            found.setdefault(token, Logprob(logprob, rank, self._word(token)))
        return found

    def _word(self, token: int) -> str | None:
        return None if self._text.tokenizer is None else self._text.decode([token], False)


def _stop_reason(sequence: SequenceLog, live: Live) -> int | str | None:
    """The stop string or stop id that ended it; the model's own end tokens need no word."""
    stop_string = live.texts.stop_string(sequence.index)
    if stop_string is not None:
        return stop_string
    if sequence.reason is Reason.STOP and sequence.ids and sequence.ids[-1] in live.sampling.stop_token_ids:
        return sequence.ids[-1]
    return None

"""Log-probabilities of tokens under the raw logits, before penalties, temperature and filters, as vLLM reports them.

The sampler asks for those of drawn tokens, the step loop for those of a block of prompt tokens, beam search for the
best of each row. They leave for the host when the step is issued and are read when it is retired, so that nothing waits
for what was issued meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from cluster.messages import Logprobs
from kernels.device.seam import device_of

# So many rows are looked at together.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of `rows` tokens: their own log-probability, rank (1 is the likeliest), and the likeliest of their place."""

    ids: torch.Tensor  # int64 [rows]
    logprobs: torch.Tensor  # fp32 [rows]
    ranks: torch.Tensor  # int64 [rows]
    top_ids: torch.Tensor  # int64 [rows, top]
    top_logprobs: torch.Tensor  # fp32 [rows, top]

    def leaving(self) -> TokenLogprobs:
        """The same on their way to the host: whoever reads them waits for what was issued before, and no longer."""
        seam = device_of(self.ids.device)
        return TokenLogprobs(*(seam.fetch(getattr(self, field.name)) for field in fields(self)))

    def messages(self, num_top: Sequence[int]) -> list[Logprobs]:
        """One message per row with so many top tokens each, once they are on the host."""
        ids, own, ranks = self.ids.tolist(), self.logprobs.tolist(), self.ranks.tolist()
        top_ids, top = self.top_ids.tolist(), self.top_logprobs.tolist()
        return [
            Logprobs(ids[i], own[i], ranks[i], tuple(zip(top_ids[i][:wanted], top[i][:wanted], strict=True)))
            for i, wanted in enumerate(num_top)
        ]


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> TokenLogprobs:
    """Of token `ids[i]` under `logits[i]`, and of the `num_top` likeliest there. logits: [rows, vocabulary].

    For a block of prompt tokens, `ids` are the tokens that follow: the logits of position i judge token i + 1.
    """
    if len(logits) <= _ROWS:
        return _token_logprobs(logits, ids, num_top)
    # What it takes beside them is several times as large as the logits themselves.
    firsts = range(0, len(logits), _ROWS)
    parts = [_token_logprobs(logits[at : at + _ROWS], ids[at : at + _ROWS], num_top) for at in firsts]
    return TokenLogprobs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TokenLogprobs)))


def _token_logprobs(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> TokenLogprobs:
    values = logits.float()
    norm = values.logsumexp(-1, keepdim=True)
    own = values.gather(1, ids[:, None])
    ranks = (values > own).sum(-1) + 1
    best, best_ids = values.topk(min(num_top, values.shape[1]), dim=-1)
    return TokenLogprobs(ids, (own - norm)[:, 0], ranks, best_ids, best - norm)


def topk_logprobs(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` likeliest tokens of each row, best first: log-probabilities fp32 and ids int64, both [rows, k]."""
    values = logits.float()
    best, ids = values.topk(k, dim=-1)
    return best - values.logsumexp(-1, keepdim=True), ids

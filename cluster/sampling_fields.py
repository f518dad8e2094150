"""What a client can say about how its tokens are chosen: the fields of `SamplingParams`, and what follows from them.

`cluster/sampling_rules.py` checks them and `cluster/sampling.py` makes the settings of one model from them: everybody
else uses that class. Nothing is checked or filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from cluster.limits import MIN_TEMPERATURE
from cluster.structure import StructuredOutputsParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SamplingFields:
    """The settings by name, as a client gives them or as `resolve` has filled them in."""

    n: int = 1
    """Sequences written for the prompt. Sequence j draws with `sequence_seed(seed, j)`."""

    temperature: float | None = None
    """0 (or below 1e-5) is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 or -1 is off."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Over prompt and output, as in transformers."""
    presence_penalty: float | None = None
    """Over the output alone, as OpenAI defines it."""
    frequency_penalty: float | None = None
    """Over the output alone, as OpenAI defines it."""
    seed: int | None = None
    """None: the door draws one."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit."""
    allowed_token_ids: Sequence[int] | None = None
    """None: every token may come. Otherwise only these."""
    bad_words: Sequence[str] = ()
    """Words that may not come; the door turns them into ids with `with_bad_word_ids`."""
    bad_words_token_ids: Sequence[Sequence[int]] = ()
    """Banned tokens and token runs: the last id of a run is banned where the ids before it stand."""
    forced_tokens: Mapping[int, int] = field(default_factory=dict)
    """Output position (0 is the first new token, -1 the last that `max_tokens` allows) -> the token that must come."""

    max_tokens: int | None = 16
    """16 as in vLLM. None: `max_new_tokens` of the model's generation config, else all the room that the model has."""
    min_tokens: int | None = None
    """No end token and no stop id before so many tokens."""
    stop: Sequence[str] = ()
    """A string or several; the text ends before the first that appears."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False

    logprobs: int | None = None
    """Top tokens reported with each chosen one; 0 is the chosen one alone. Raw: before penalties and temperature."""
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    beam_width: int | None = None
    """Beam search with so many beams; temperature and the filters are then left out."""
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    structured_outputs: StructuredOutputsParams | None = None
    """The answer is of this structure: a JSON schema, a regular expression, a grammar, or one of some texts."""

    eos_token_ids: Sequence[int] = ()
    """The model's end tokens, written by `resolve`; empty with `ignore_eos`. Clients leave it alone."""

    @property
    def is_greedy(self) -> bool:
        """True when no draw is made. Only resolved settings can tell."""
        if self.beam_width is not None:
            return not self.width
        return required(self.temperature) < MIN_TEMPERATURE

    @property
    def width(self) -> int:
        """Beams that are searched with, 0 for none: the best of a single beam is what greedy writes."""
        return self.beam_width if self.beam_width is not None and self.beam_width > 1 else 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """All token ids that end a sequence: the model's end tokens (unless ignored) and the request's stop ids."""
        return tuple(dict.fromkeys((*self.eos_token_ids, *self.stop_token_ids)))


def required(value: T | None) -> T:
    """`value`, which resolved settings always have."""
    assert value is not None, "sampling settings were used before resolve()"
    return value

"""How the tokens of a request are chosen: the settings a client gives, and what they become for one model.

Clients, the embedded engine, gateways and workers all hold this one class. A request comes with what its client said;
the door that takes it calls `resolve` once, and everything behind the door sees only resolved settings. Nothing here
computes on logits, and nothing here imports torch or numpy. `cluster/sampling_fields.py` has the fields and
`cluster/sampling_rules.py` the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from cluster.errors import ConfigError, InvalidRequest
from cluster.sampling_fields import SamplingFields, required
from cluster.sampling_rules import check_against_model, check_counts, check_something_left, check_values

__all__ = ["SETTING_NAMES", "SamplingParams", "required", "sequence_seed"]


@dataclass(frozen=True, slots=True)
class SamplingParams(SamplingFields):
    """Sampling settings under the names of vLLM's offline API.

    A setting left at None takes the model's `generation_config.json` default, else the neutral value. Wrong values
    raise `InvalidRequest` when the object is made; what depends on the model is checked by `resolve`.
    """

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        # Before anything is copied: doors hand over lists of strangers as they came.
        check_counts(self)
        if isinstance(self.stop, str):
            set_field(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "bad_words", "eos_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if value is None:
                set_field(self, name, None if name == "allowed_token_ids" else ())
            elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
                set_field(self, name, tuple(value))
        runs: object = self.bad_words_token_ids
        if runs is None or isinstance(runs, Sequence):
            # A banned token may stand without its brackets.
            listed = ((run,) if isinstance(run, int) else run for run in runs or ())
            set_field(self, "bad_words_token_ids", tuple(tuple(r) if isinstance(r, Sequence) else r for r in listed))
        # Maps are copied, so that a caller who goes on writing into theirs cannot change a request under way.
        for name in ("logit_bias", "forced_tokens"):
            value = getattr(self, name)
            if value is None or isinstance(value, Mapping):
                set_field(self, name, dict(value or {}))
        check_values(self)

    def with_bad_word_ids(self, encode: Callable[[str], Sequence[int]]) -> SamplingParams:
        """These settings with each bad word turned into token ids, as it stands at a text's start and after a space."""
        if not self.bad_words:
            return self
        runs = list(self.bad_words_token_ids)
        for word in self.bad_words:
            for text in (word, " " + word.lstrip()):
                ids = tuple(encode(text))
                if ids and ids not in runs:
                    runs.append(ids)
        return replace(self, bad_words=(), bad_words_token_ids=tuple(runs))

    def resolve(
        self,
        defaults: Mapping[str, object],
        *,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: Sequence[int] = (),
        num_prompt_tokens: int = 0,
        seed: int | None = None,
    ) -> SamplingParams:
        """These settings for one model and prompt, with every number filled in that the model or neutrality decides.

        `defaults` is the model's generation config under transformers' names; `eos_token_ids`, when given, replaces the
        end tokens in it. `seed` is used where the request names none. `max_tokens` is cut to the room behind the
        prompt. None stays only where it means "not asked for": logprobs, allowed ids, beams, and a seed that nobody
        gave. Raises `InvalidRequest` for what this model cannot do.
        """
        check_against_model(self, vocab_size, max_model_len, num_prompt_tokens)
        room = max_model_len - num_prompt_tokens
        eos = tuple(eos_token_ids) or _ids(defaults.get("eos_token_id"))
        chosen = _filled(self, defaults)
        asked = chosen["max_tokens"]
        max_tokens = min(asked, room) if isinstance(asked, int) else room
        chosen["max_tokens"] = max_tokens
        if self.min_tokens is None:
            chosen["min_tokens"] = min(max_tokens, _as_int(chosen["min_tokens"]))
        chosen["forced_tokens"] = {
            at % max_tokens: token for at, token in self.forced_tokens.items() if at < max_tokens
        }
        forced_end = _ids(defaults.get("forced_eos_token_id"))
        if forced_end and not self.ignore_eos:
            chosen["forced_tokens"].setdefault(max_tokens - 1, forced_end[0])  # type: ignore[attr-defined]
        chosen["bad_words_token_ids"] = (*self.bad_words_token_ids, *_banned_by_model(defaults, eos))
        chosen["eos_token_ids"] = () if self.ignore_eos else eos
        if self.seed is None:
            chosen["seed"] = seed
        try:
            resolved = replace(self, **chosen)  # type: ignore[arg-type]  # each field under its own name
        except InvalidRequest as error:
            # The request itself has passed, so that the figure can only come from the model's own file.
            raise ConfigError(f"generation_config.json of the model: {error}") from error
        check_something_left(resolved, vocab_size)
        return resolved


_NEUTRAL: Mapping[str, object] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "max_tokens": None,
    "min_tokens": 0,
}
_CONFIG_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}


def _filled(params: SamplingParams, defaults: Mapping[str, object]) -> dict[str, object]:
    """For each setting that may be None: the request's value, else the model's, else the neutral one."""
    chosen: dict[str, object] = {}
    for name, neutral in _NEUTRAL.items():
        value = getattr(params, name)
        if value is None:
            value = defaults.get(_CONFIG_NAMES.get(name, name))
        chosen[name] = neutral if value is None else value
    # A config that says `do_sample: false` in so many words is greedy, whatever temperature stands beside it.
    if params.temperature is None and defaults.get("do_sample") is False:
        chosen["temperature"] = 0.0
    return chosen


def _banned_by_model(defaults: Mapping[str, object], eos: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """`bad_words_ids` and `suppress_tokens` of a generation config. As in transformers, bad words spare end tokens."""
    words = defaults.get("bad_words_ids") or ()
    assert isinstance(words, Sequence)
    runs = [tuple(word) for word in words]
    banned = [run for run in runs if not (len(run) == 1 and run[0] in eos)]
    return (*banned, *((token,) for token in _ids(defaults.get("suppress_tokens"))))


def _ids(value: object) -> tuple[int, ...]:
    """Token ids as generation configs write them: none, one or a list."""
    if value is None:
        return ()
    return tuple(int(token) for token in value) if isinstance(value, Sequence) else (_as_int(value),)


def _as_int(value: object) -> int:
    assert isinstance(value, int), value
    return value


def sequence_seed(seed: int, index: int) -> int:
    """The seed with which sequence `index` of a request draws.

    A request of its own with this seed and one sequence draws the same tokens; index 0 keeps the request's seed. The
    mix is splitmix64, so that neighbouring seeds and indices share nothing.
    """
    mask = (1 << 64) - 1
    if index == 0:
        return seed & mask
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


SETTING_NAMES = tuple(f.name for f in fields(SamplingParams) if f.name != "eos_token_ids")
"""What a client may set, for the doors that read settings by name (command line, JSON)."""

"""What a model's `generation_config.json` asks for that Quire does not do, so that whoever starts a model is told.

The worker prints these lines once at start; requests are served without them. What Quire honours is read in
`cluster/sampling.py`: temperature, top_k, top_p, min_p, do_sample, penalties, banned and suppressed tokens, end tokens,
lengths, the forced end token, and what belongs to beams.
"""

from __future__ import annotations

from collections.abc import Mapping

# Settings of transformers that change tokens, each with the values that ask for nothing.
_NOT_HONOURED: Mapping[str, tuple[object, ...]] = {
    "no_repeat_ngram_size": (None, 0),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, [], ""),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "top_h": (None,),
    "guidance_scale": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "diversity_penalty": (None, 0.0),
    "penalty_alpha": (None, 0.0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "renormalize_logits": (None, False),
    "num_beams": (None, 1),
}


def not_honoured(defaults: Mapping[str, object]) -> list[str]:
    """The settings of a model that are left out, as `name=value`."""
    return [
        f"{name}={defaults[name]!r}"
        for name, neutral in _NOT_HONOURED.items()
        if name in defaults and defaults[name] not in neutral
    ]

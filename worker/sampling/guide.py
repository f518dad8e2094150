"""What llguidance makes of a structure: a matcher that tells which tokens may come next, within bounds.

Every door calls `check_structure` once per request, away from its loop, so that no worker meets a structure that cannot
be obeyed. llguidance is imported only when a structure is asked for; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from importlib.util import find_spec
from typing import Any

from cluster.errors import InvalidRequest, Unsupported
from cluster.structure import BLANKS, StructuredOutputsParams

_FIELD = "structured_outputs"

TRIED_TOKENS = 4
"""Some structures can be begun, and are too much for the parser at the next token."""


def matcher_of(structure: StructuredOutputsParams, tokenizer: Any) -> Any:
    """An llguidance matcher at the beginning of an answer. ValueError for what cannot be obeyed within these bounds."""
    from llguidance import LLMatcher, LLParserLimits, grammar_from

    kind: Any = structure.kind
    if kind == "json_schema":
        grammar = LLMatcher.grammar_from_json_schema(structure.text, defaults={"whitespace_pattern": BLANKS})
    elif structure.choice is not None:
        # As one word of the lexer: thousands of rules would be more than the parser may look at together.
        grammar = LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {' | '.join(map(json.dumps, structure.choice))}")
    else:
        grammar = grammar_from(kind, structure.text)
    limits = LLParserLimits(
        verbose_errors=False,
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
    )
    matcher = LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def tokenizer_of(tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> Any:
    """llguidance's view of a model's tokenizer; takes about a second. Raises `Unsupported` where there is none."""
    return tokenizer_from(words_of(tokenizer, vocab_size, eos_token_ids))


def words_of(tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """What `tokenizer_from` needs, as JSON can say it. Raises `Unsupported`."""
    if find_spec("llguidance") is None:
        raise Unsupported(_FIELD, "is asked for, and llguidance is not installed here", "pip install llguidance")
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise Unsupported(
            _FIELD, "is asked for, and this model has no tokenizer that it can be done with", "leave it out"
        )
    if not eos_token_ids:
        raise Unsupported(_FIELD, "is asked for, and this model has no end token", "leave it out")
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return {"tokenizer": backend.to_str(), "n_vocab": vocab_size, "eos_token": list(eos_token_ids)}


def tokenizer_from(words: Mapping[str, Any]) -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(**words)


def check_structure(structure: StructuredOutputsParams, tokenizer: Any) -> None:
    """Raises `InvalidRequest` for a structure that cannot be obeyed within bounds. `tokenizer` is `tokenizer_of`'s."""
    wrong = ""
    try:
        matcher = matcher_of(structure, tokenizer)
        for _ in range(TRIED_TOKENS):
            mask = int.from_bytes(matcher.compute_bitmask(), "little")
            if not matcher.is_error() and mask and not matcher.is_stopped():
                # The lowest id that is allowed.
                matcher.consume_token((mask & -mask).bit_length() - 1)
        wrong = matcher.get_error() if matcher.is_error() else ""
    except (ValueError, TypeError, RuntimeError) as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        first = " ".join(wrong.split())
        raise InvalidRequest(f"{_FIELD}.{structure.kind}", f"cannot be obeyed: {first[:300]}", "change it")

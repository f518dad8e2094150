"""The bounds on what one request may ask, in one place.

The validator of every door reads them and the client documentation quotes them; nothing else decides what is too much.
They are constants, not settings: each bounds work or memory that one request could take from its neighbours.
"""

from __future__ import annotations

from typing import Final

MAX_N: Final = 16
"""Sequences of one request. They are resident together, so their tail blocks must all fit at once."""

MAX_BEAM_WIDTH: Final = 8
"""Beams of one request; each step ranks twice as many candidates."""

MAX_LOGPROBS: Final = 20
"""Top tokens reported with each token (the chosen one comes on top of these)."""

MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
"""A stream holds back up to this many characters that might begin a stop string."""

MAX_STOP_TOKEN_IDS: Final = 64
"""Stop ids, end tokens included; the worker compares all of them with each token."""

MAX_LOGIT_BIAS_ENTRIES: Final = 1024
MAX_LOGIT_BIAS: Final = 100.0

MAX_ALLOWED_TOKEN_IDS: Final = 1 << 19
"""No vocabulary in use is larger."""

MAX_BAD_WORDS: Final = 256
MAX_BAD_WORD_RUNS: Final = 1024
MAX_BAD_WORD_TOKENS: Final = 16
"""Tokens of one banned word; longer ones are refused, because a step compares that many past tokens."""

MAX_LISTED_RUNS: Final = 1 << 16
"""Banned runs of resolved settings, with those that a model's own configuration lists."""

MAX_FORCED_TOKENS: Final = 256

MAX_PENALTY: Final = 2.0
"""Presence and frequency penalties lie in -2 to 2, as OpenAI defines them."""

MIN_REPETITION_PENALTY: Final = 0.01
"""Logits are divided by it: behind much smaller ones no number is left."""

MAX_REPETITION_PENALTY: Final = 10.0

MAX_TEMPERATURE: Final = 100.0

MIN_TEMPERATURE: Final = 1e-5
"""A temperature below this is greedy: the quotient would leave fp32."""

MAX_SEED: Final = 2**64 - 1

MAX_CHAT_MESSAGES: Final = 4_096
MAX_ROLE_CHARS: Final = 64
MAX_MODEL_NAME_CHARS: Final = 1_024

MAX_PRIORITY: Final = 1_000_000
"""Priorities of requests lie in -1,000,000 to 1,000,000; lower goes first."""

MAX_TOOLS: Final = 128
MAX_TOOL_CHARS: Final = 150_000
"""Of all tools of a request, as JSON."""

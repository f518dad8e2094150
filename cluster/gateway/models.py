"""What a gateway knows of a model: its tokenizer, chat template, default settings and limits. No weights, no torch.

The gateway loads one `TextModel` per served model at start and asks it to turn prompts into token ids and settings into
resolved ones; so does the embedded engine. A model without a tokenizer takes and gives token ids. `transformers` is
imported only here, for the tokenizer and for what a configuration leaves to its class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import DeadlineExceeded, InvalidRequest, ModelError, NeverFits, unreadable
from cluster.gateway.byte_level import ByteTable, ByteWindow
from cluster.gateway.detokenizer import detokenizers
from cluster.gateway.templates import Conversation, Template, render
from cluster.gateway.texts import TextCutter
from cluster.messages import Ids, ids
from cluster.sampling import SamplingParams
from cluster.speech.forms import form_of, opens_thinking
from cluster.speech.tools import messages_of, object_of, read_tools
from cluster.structure import StructuredOutputsParams
from protos.quire.v1 import inference_pb2 as pb
from worker.model.checkpoint import eos_token_ids
from worker.model.config_check import FIGURES, check_ends, check_figures, read_json
from worker.model.tokenizer import load_tokenizer
from worker.sampling.guide import check_structure, tokenizer_from, words_of

# What the door itself says to templates.
_TEMPLATE_WORDS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
# How configurations call the most positions of a sequence.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
CHARS_PER_TOKEN = 64
"""No tokenizer in use packs more characters than this into each token of a long text: such a text is not even tried."""
LIKELY_CHARS_PER_TOKEN = 8
PIECE_CHARS = 1 << 16
PIECES_S = 10.0
"""A text of a mebibyte, or with more characters than are likely to fit, is tried piece by piece first: no tokenizer can
be stopped, and this tells whether it would take too long, or make far more tokens than fit."""


class TextModel:
    """The text side of one model. All calls are pure and may run in threads."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        vocab_size: int,
        max_model_len: int,
        defaults: Mapping[str, object],
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.defaults = defaults
        self._tables: dict[bool, ByteTable] = {}
        self._guide: Any = None
        self.template = Template.of(tokenizer)
        source = self.template.source if self.template is not None else ""
        self.form = form_of(source, getattr(tokenizer, "all_special_tokens", ()))

    @classmethod
    def load(cls, name: str, folder: Path) -> TextModel:
        """Reads config, generation config and tokenizer of a model folder. Raises `ModelError`."""
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no config.json; give the folder of a model")
        config = read_json(path)
        check_figures(path, config)
        path = folder / "generation_config.json"
        defaults = read_json(path) if path.is_file() else {}
        check_ends(path, defaults.get("eos_token_id"))
        inner = _decoder_of(config)
        ends = _first("eos_token_id", defaults, config, inner)
        if ends is None or not inner.get("vocab_size"):
            config, inner = _with_class_defaults(folder)
            check_figures(folder / "config.json", inner)
            ends = _first("eos_token_id", defaults, config, inner)
        return cls(
            name,
            load_tokenizer(folder),
            vocab_size=int(inner["vocab_size"]),
            max_model_len=_longest(folder, inner),
            defaults={**defaults, "eos_token_id": ends},
        )

    def encode(self, text: str) -> Ids:
        """Token ids of a text, with the special tokens that the model wants. Raises `InvalidRequest`."""
        self._needs_tokenizer("prompt.text", "is text", "send token_ids")
        return self._encode("prompt.text", text, adds_special_tokens=True)

    def encode_chat(self, chat: pb.Chat) -> Ids:
        """Token ids of a conversation by the model's chat template, in this process. Raises `InvalidRequest`."""
        return self.encode_rendered(render(*self.conversation(chat)))

    def conversation(self, chat: pb.Chat) -> tuple[Template, Conversation]:
        """The chat template, and what it is to write. Raises `InvalidRequest`."""
        if self.template is None:
            raise InvalidRequest("prompt.chat", f"model {self.name} has no chat template", "send text or token_ids")
        self._check_chars(sum(len(message.content) for message in chat.messages))
        tools = read_tools(chat)
        self.form.check(tools)
        return self.template, Conversation(
            self.form.explained(messages_of(chat), tools),
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
            [tool.whole for tool in tools.listed] if self.form.template_knows_tools else [],
            _words(chat.template_args, self.template),
        )

    def must_say(self, chat: pb.Chat, params: SamplingParams, prompt: Sequence[int]) -> SamplingParams:
        """The settings with the structure that a conversation's tools ask for. Raises `InvalidRequest`."""
        tools = read_tools(chat)
        if not tools.listed:
            return params
        if params.structured_outputs is not None:
            raise InvalidRequest(
                "structured_outputs", "is set beside tools", "give one of the two, or tool_choice none"
            )
        grammar = self.form.grammar(tools, self.opens_thinking(prompt))
        if grammar is None:
            return params
        return replace(params, structured_outputs=StructuredOutputsParams(grammar=grammar))

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether an answer to this prompt begins inside of reasoning."""
        return self.form.thinks and opens_thinking(self.decode(prompt[-8:], False))

    def encode_rendered(self, text: str) -> Ids:
        """Token ids of what the chat template made, which writes the special tokens itself."""
        return self._encode("prompt.chat", text, adds_special_tokens=False)

    def _encode(self, field: str, text: str, *, adds_special_tokens: bool) -> Ids:
        self._check_chars(len(text))
        try:
            if len(text) > min(1 << 20, LIKELY_CHARS_PER_TOKEN * self.max_model_len):
                self._try_pieces(text)
            # transformers would log that a text is too long; that is ours to say.
            return ids(self.tokenizer.encode(text, add_special_tokens=adds_special_tokens, verbose=False))
        except (UnicodeError, TypeError, OverflowError) as error:
            raise InvalidRequest(field, f"the model's tokenizer can't read it: {error}"[:500]) from error

    def _try_pieces(self, text: str) -> None:
        """Raises `NeverFits` once pieces of the text make twice the tokens that fit, for they make about as many as it;
        or `DeadlineExceeded`."""
        count, until = 0, time.monotonic() + PIECES_S
        for at in range(0, len(text), PIECE_CHARS):
            piece = text[at : at + PIECE_CHARS]
            count += len(self.tokenizer.encode(piece, add_special_tokens=False, verbose=False))
            if count > 2 * self.max_model_len:
                raise NeverFits("prompt", count, self.max_model_len, "tokens", "shorten the prompt")
            if time.monotonic() > until:
                detail = f"to tokenize {at + len(piece):,} of {len(text):,} characters took more than {PIECES_S:g} s"
                raise DeadlineExceeded(f"{detail}; shorten the prompt, or send token_ids")

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        self._needs_tokenizer("ids", "shall become text", "give another model")
        self.check_ids("ids", tokens)
        backend = self._backend()
        if backend is None:
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))
        # As a batch it lets other threads run meanwhile.
        (text,) = backend.decode_batch([list(tokens)], skip_special_tokens=skip_special_tokens)
        return str(text)

    def spell(self, token: int) -> bytes:
        """The text of a token alone in UTF-8, of which it may be a part of a character; empty without a tokenizer."""
        if self.tokenizer is None:
            return b""
        table = self._table(False)
        if table is None:
            return self.decode([token], False).encode()
        return table.known[token] or table.find(token)

    def cutters(self, params: SamplingParams) -> Callable[[], TextCutter | None]:
        """Makes what cuts the text of each sequence of a request; None where there is no text, or its client
        wants none."""
        if not params.detokenize or self.tokenizer is None:
            return _no_cutter
        return detokenizers(params, self._decoder(params.skip_special_tokens), self._windows(params))

    def _windows(self, params: SamplingParams) -> Callable[[], ByteWindow] | None:
        table = self._table(params.skip_special_tokens)
        return None if table is None else partial(ByteWindow, table)

    def _table(self, skip_special_tokens: bool) -> ByteTable | None:
        """None: text is more than its tokens' bytes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not ByteTable.fits(backend) or getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            return None
        if skip_special_tokens not in self._tables:
            self._tables[skip_special_tokens] = ByteTable(backend, self.vocab_size, skip_special_tokens)
        return self._tables[skip_special_tokens]

    def _decoder(self, skip_special_tokens: bool) -> Callable[[list[int]], str]:
        decode = (self._backend() or self.tokenizer).decode
        return partial(decode, skip_special_tokens=skip_special_tokens)

    def _backend(self) -> Any:
        """The tokenizer behind transformers' own, which is ten times as fast, where it gives the same text."""
        cleans = getattr(self.tokenizer, "clean_up_tokenization_spaces", False)
        return None if cleans else getattr(self.tokenizer, "backend_tokenizer", None)

    def check_ids(self, field: str, tokens: Sequence[int]) -> None:
        """Raises `InvalidRequest` for ids that the model does not have."""
        least, most = min(tokens, default=0), max(tokens, default=0)
        wrong = least if least < 0 else most
        if not 0 <= wrong < self.vocab_size:
            last = self.vocab_size - 1
            raise InvalidRequest(field, f"holds token id {wrong:,}", f"ids of this model are 0 to {last:,}")

    def resolve(self, params: SamplingParams, num_prompt: int, max_model_len: int, seed: int) -> SamplingParams:
        """The settings with every figure filled in. Raises `InvalidRequest`, or `ConfigError` for a broken model."""
        if params.stop:
            self._needs_tokenizer("sampling.stop", "needs text", "use stop_token_ids")
        return params.with_bad_word_ids(self._encode_word).resolve(
            self.defaults,
            vocab_size=self.vocab_size,
            max_model_len=max_model_len,
            num_prompt_tokens=num_prompt,
            seed=seed,
        )

    def why_full(self, num_prompt: int, params: SamplingParams, longest: int) -> str:
        """What an answer says that is as long as it may be: that no more tokens fit. Empty where they would. `longest`:
        as many fit where the model is served."""
        if num_prompt + (params.max_tokens or 0) < longest:
            return ""
        more = f" (the model itself: {self.max_model_len:,})" if self.max_model_len > longest else ""
        return f"prompt and answer have {longest:,} tokens, the most that this model takes here{more}"

    def check_structure(self, params: SamplingParams) -> None:
        """Whether the structure that resolved settings ask for can be obeyed; takes long at times. Raises
        `InvalidRequest`."""
        if params.structured_outputs is not None:
            if self._guide is None:
                self._guide = tokenizer_from(self.guide_words())
            check_structure(params.structured_outputs, self._guide)

    def guide_words(self) -> dict[str, Any]:
        """What tells which tokens a structure allows, as `tokenizer_from` wants it. Raises `Unsupported`."""
        return words_of(self.tokenizer, self.vocab_size, eos_token_ids(self.defaults))

    def _encode_word(self, word: str) -> Sequence[int]:
        self._needs_tokenizer("sampling.bad_words", f"holds the text {word!r}", "use bad_words_token_ids")
        return list(self.tokenizer.encode(word, add_special_tokens=False))

    def _needs_tokenizer(self, field: str, problem: str, hint: str) -> None:
        if self.tokenizer is None:
            raise InvalidRequest(field, f"{problem}, and model {self.name} has no tokenizer", hint)

    def _check_chars(self, num_chars: int) -> None:
        if num_chars > self.max_chars:
            raise NeverFits("prompt", num_chars, self.max_chars, "characters", "shorten the prompt")

    @property
    def max_chars(self) -> int:
        """No longer text could fit."""
        return self.max_model_len * CHARS_PER_TOKEN


def _longest(folder: Path, inner: Mapping[str, Any]) -> int:
    found = next((inner[length] for length in _LENGTHS if inner.get(length)), 2048)
    most = FIGURES["max_position_embeddings"]
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
        raise ModelError(f"{folder / 'config.json'} says no longest sequence from 1 to {most:,} tokens")
    return found


def _decoder_of(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the decoder, which a model of text and images has inside its own."""
    text_config = config.get("text_config")
    return text_config if isinstance(text_config, dict) else config


def _first(name: str, *configs: Mapping[str, Any]) -> Any:
    return next((config[name] for config in configs if config.get(name) is not None), None)


def _with_class_defaults(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and its decoder's, with what config.json leaves to their classes."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        whole, inner = config.to_dict(), config.get_text_config().to_dict()
    except Exception as error:
        # Configurations raise classes of their own, one per wrong field.
        raise unreadable(folder / "config.json", error, kind=ModelError) from error
    if not inner.get("vocab_size"):
        raise ModelError(f"{folder / 'config.json'} names no vocab_size; give the folder of a language model")
    return whole, inner


def _words(given: str, template: Template) -> dict[str, Any]:
    """What a client says to the template. Raises `InvalidRequest` for what the template never reads."""
    words = object_of("prompt.chat.template_args", given) if given else {}
    for word in words:
        if word in _TEMPLATE_WORDS or word in template.words or word not in template.source:
            problem = "is not a word that this model's template asks for"
            raise InvalidRequest(f"prompt.chat.template_args.{word[:80]}", problem, "leave it out")
    return words


def _no_cutter() -> None:
    return None

"""Whether the structure that a request asks for can be obeyed: looked at once, before a worker meets it.

A grammar of 150 bytes can take minutes and gigabytes to compile, so that is done by a confined child. What was found to
be good is remembered: clients send the same schema again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway.confined import Confined, Subject, Words, serve
from cluster.gateway.models import TextModel
from cluster.structure import StructuredOutputsParams, structure_from
from worker.sampling.guide import check_structure, tokenizer_from

COMPILE_S = 3.0
"""A schema of thousands of properties takes about a second; behind this a structure is refused."""
MEMORY_BYTES = 1 << 30
"""What tokenizers and a structure may take beyond the child's own."""
MAX_REMEMBERED = 1_024


class GatewayStructures:
    """Belongs to one event loop."""

    def __init__(self, compile_s: float = COMPILE_S) -> None:
        self._compile_s = compile_s
        self.child = Confined(__name__, compile_s, "structures")
        self._good: dict[tuple[TextModel, str, str], None] = {}

    async def check(self, tenant: str, model: TextModel, structure: StructuredOutputsParams) -> None:
        """Raises `InvalidRequest` for one that cannot be obeyed within bounds, or `QueueFull`."""
        asked = model, structure.kind, structure.text
        if asked in self._good:
            return
        try:
            question = {"kind": structure.kind, "text": structure.text}
            answer = await self.child.ask(tenant, model, model.guide_words, question)
        except TimeoutError:
            raise _refused(structure, f"takes more than {self._compile_s:g} s to compile") from None
        except EOFError:
            raise _refused(structure, f"takes more than {MEMORY_BYTES >> 20:,} MiB to compile") from None
        if "problem" in answer:
            raise InvalidRequest(answer["field"], answer["problem"], answer["remedy"])
        if len(self._good) >= MAX_REMEMBERED:
            del self._good[next(iter(self._good))]
        self._good[asked] = None

    async def close(self) -> None:
        await self.child.close()


def _refused(structure: StructuredOutputsParams, problem: str) -> InvalidRequest:
    return InvalidRequest(f"structured_outputs.{structure.kind}", problem, "make it smaller or simpler")


def _read(words: Words) -> Subject:
    tokenizer = tokenizer_from(words)
    return lambda question: _answer(tokenizer, question)


def _answer(tokenizer: Any, question: Mapping[str, Any]) -> Words:
    try:
        check_structure(structure_from(question["kind"], question["text"]), tokenizer)
    except InvalidRequest as error:
        return {"field": error.field, "problem": error.problem, "remedy": error.remedy}
    return {}


if __name__ == "__main__":
    serve(_read, MEMORY_BYTES)

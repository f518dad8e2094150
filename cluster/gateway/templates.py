"""Chat templates: programs of a model's makers, run in a process of their own that has little memory and little time.

A template can loop for ever, ask for all memory or recurse until the stack is gone, and no thread could be stopped in
that. So gateways have `Templates` run it: a child that is ended when it takes too long, and started again at the next
conversation. Whatever goes wrong in it is the error of the client that asked. `render` is what the child does; the
embedded engine, whose caller brought the model, calls it directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, BinaryIO

from cluster.errors import InvalidRequest, QueueFull

RENDER_S = 5.0
"""A conversation takes milliseconds; behind this its template is ended."""
START_S = 60.0
MEMORY_BYTES = 256 << 20
"""What a template may take beyond the child's own."""
MAX_WAITING = 256
_SIZE = Struct("<I")


@dataclass(frozen=True, slots=True)
class Template:
    """`words`: what a template may name beside the messages, such as the model's special tokens."""

    source: str
    words: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any) -> Template | None:
        """The one that transformers would take; None: the model has none."""
        try:
            source = tokenizer.get_chat_template()
        except (AttributeError, ValueError):
            return None
        return cls(source, dict(tokenizer.special_tokens_map)) if isinstance(source, str) and source else None


def render(template: Template, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
    """The conversation as the model's text, as transformers makes it. Raises InvalidRequest."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [list(messages)],
            chat_template=template.source,
            add_generation_prompt=add_generation_prompt,
            **template.words,
        )
    except Exception as error:
        # Templates refuse roles in a wrong order, and stumble over whatever else they did not think of.
        raise refused(f"{type(error).__name__}: {error}" if not str(error) else str(error)) from error
    return str(text)


def refused(why: str) -> InvalidRequest:
    return InvalidRequest("prompt.chat", f"the model's chat template refuses it: {why[:500]}", "send text or token_ids")


class Templates:
    """One child, which renders one conversation after the other. Belongs to one event loop."""

    def __init__(self, render_s: float = RENDER_S) -> None:
        self._render_s = render_s
        self._child: asyncio.subprocess.Process | None = None
        # Those that this child has been told, and by which number.
        self._known: dict[int, tuple[Template, int]] = {}
        self._turn = asyncio.Lock()
        self._num_waiting = 0
        self.num_ended = 0

    async def render(
        self, template: Template, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, max_chars: int
    ) -> str:
        """As `render` above. Raises InvalidRequest, or QueueFull."""
        if self._num_waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} conversations wait for their chat template here", 1.0)
        self._num_waiting += 1
        try:
            async with self._turn:
                return await self._ask(template, messages, add_generation_prompt, max_chars)
        finally:
            self._num_waiting -= 1

    async def _ask(
        self, template: Template, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, max_chars: int
    ) -> str:
        child, done = await self._started(), False
        question = {"messages": messages, "add": add_generation_prompt, "max_chars": max_chars}
        try:
            async with asyncio.timeout(self._render_s):
                answer = await self._exchange(child, {**self._number(template), **question})
            done = True
        except TimeoutError:
            raise refused(f"it took more than {self._render_s:g} s") from None
        except (OSError, asyncio.IncompleteReadError):
            raise refused("it ended the process that runs it, for want of memory or stack") from None
        finally:
            # Also when nobody waits for the answer any more: the next one must not get it.
            if not done:
                await self._end()
        if "text" not in answer:
            raise refused(answer["error"])
        return str(answer["text"])

    def _number(self, template: Template) -> dict[str, Any]:
        known = self._known.get(id(template))
        if known is not None:
            return {"number": known[1]}
        number = len(self._known)
        self._known[id(template)] = template, number
        return {"number": number, "source": template.source, "words": template.words}

    async def _exchange(self, child: asyncio.subprocess.Process, question: dict[str, Any]) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None
        raw = json.dumps(question).encode()
        child.stdin.write(_SIZE.pack(len(raw)) + raw)
        await child.stdin.drain()
        (size,) = _SIZE.unpack(await child.stdout.readexactly(_SIZE.size))
        answer: dict[str, Any] = json.loads(await child.stdout.readexactly(size))
        return answer

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is None:
            self._known = {}
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            try:
                async with asyncio.timeout(START_S):
                    assert self._child.stdout is not None
                    await self._child.stdout.readexactly(_SIZE.size)
            except BaseException:
                await self._end()
                raise
        return self._child

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            self.num_ended += 1
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        """Nothing may be asked any more."""
        async with self._turn:
            await self._end()


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """The child: answers until nobody asks any more."""
    templates: dict[int, Template] = {}
    answers.write(_SIZE.pack(0))
    answers.flush()
    while size := questions.read(_SIZE.size):
        question = json.loads(questions.read(*_SIZE.unpack(size)))
        if "source" in question:
            templates[question["number"]] = Template(question["source"], question["words"])
        raw = json.dumps(_answer(templates[question["number"]], question)).encode()
        answers.write(_SIZE.pack(len(raw)) + raw)
        answers.flush()


def _answer(template: Template, question: Mapping[str, Any]) -> dict[str, str]:
    try:
        text = render(template, question["messages"], question["add"])
    except InvalidRequest as error:
        cause = error.__cause__
        return {"error": f"{cause}" or type(cause).__name__}
    if len(text) > question["max_chars"]:
        return {"error": f"it makes {len(text):,} characters of it, more than the model could take"}
    return {"text": text}


def _bound() -> None:
    """This process can do little harm, and ends with who started it."""
    import ctypes
    import resource
    import signal

    from transformers.utils import chat_template_utils

    assert chat_template_utils.render_jinja_template
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with open("/proc/self/statm", encoding="ascii") as figures:
        own = int(figures.read().split()[0]) * resource.getpagesize()
    for what, most in ((resource.RLIMIT_AS, own + MEMORY_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))


def main() -> None:
    # What anybody prints must not get among the answers.
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        os.dup2(2, 1)
        _bound()
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

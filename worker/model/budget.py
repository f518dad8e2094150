"""How many blocks a worker's pool gets, and the lines that tell the user why.

Pure arithmetic on bytes: the worker measures, this file decides, prints nothing and allocates nothing. When the
settings cannot be met it raises one ConfigError with the figures and a setting that would fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.settings import WorkerSettings
from cluster.sizes import format_bytes, parse_bytes
from kernels.layout import BlockLayout


@dataclass(frozen=True, slots=True)
class Budget:
    """What one device's memory is spent on, in bytes; `free_bytes` is what was left once the weights were loaded."""

    free_bytes: int
    weights_bytes: int
    working_bytes: int
    graph_bytes: int
    block_bytes: int
    block_size: int
    num_blocks: int

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def num_requests(self, length: int) -> int:
        """How many requests of so many tokens, prompt and output, are held at once."""
        return self.num_blocks // -(-length // self.block_size)

    def lines(self, max_model_len: int) -> list[str]:
        """What is printed at start."""
        lengths = [*[length for length in (512, 2048, 8192, 32768) if length < max_model_len][:3], max_model_len]
        fits = ", ".join(f"{self.num_requests(length):,} of {length:,}" for length in lengths)
        graphs = f"decode graphs {format_bytes(self.graph_bytes)}, " if self.graph_bytes else ""
        return [
            f"memory: weights {format_bytes(self.weights_bytes)}, working space {format_bytes(self.working_bytes)}, "
            f"{graphs}KV {format_bytes(self.kv_bytes)} (of {format_bytes(self.free_bytes)} free after the weights)",
            f"pool: {self.num_blocks:,} blocks of {self.block_size} tokens ({format_bytes(self.block_bytes)} each) = "
            f"{self.num_tokens:,} tokens; requests that fit at once, by tokens: {fits}",
        ]


def decide(
    settings: WorkerSettings,
    layout: BlockLayout,
    *,
    free_bytes: int,
    weights_bytes: int,
    working_bytes: int,
    max_model_len: int,
    graph_bytes: int = 0,
) -> Budget:
    """The pool for these settings. Without kv_blocks or kv_memory: a share of what is free (all of it where the share
    of the card is given, of which the caller has left the rest out), and no more than the largest batch of the longest
    requests could ever fill."""
    usable = free_bytes - working_bytes - graph_bytes
    most = max(0, usable) // layout.block_bytes
    if settings.kv_blocks is not None:
        name, wanted = "kv_blocks", settings.kv_blocks
    elif settings.kv_memory is not None:
        name, wanted = "kv_memory", parse_bytes(settings.kv_memory, "kv_memory") // layout.block_bytes
    else:
        is_given = settings.gpu_memory_utilization is not None
        name, wanted = ("gpu_memory_utilization", most) if is_given else ("kv_share", int(most * settings.kv_share))
        wanted = min(wanted, settings.max_batch * -(-max_model_len // layout.block_size))
    figures = (
        f"{format_bytes(free_bytes)} free after {format_bytes(weights_bytes)} of weights, "
        f"{format_bytes(working_bytes + graph_bytes)} of working space, {format_bytes(layout.block_bytes)} a block"
    )
    if wanted > most:
        size = format_bytes(wanted * layout.block_bytes)
        advice = f"set kv_blocks={most:,} or less" if most else "free memory or lower token_budget"
        raise ConfigError(f"{name} asks for {wanted:,} blocks = {size}, and {most:,} fit ({figures}); {advice}")
    if wanted < 1:
        if name == "kv_memory":
            raise ConfigError(
                f"kv_memory={settings.kv_memory!r} is less than one block ({figures}); "
                f'set kv_memory="{layout.block_bytes}" or more, or a smaller block_size'
            )
        raise ConfigError(f"no block of KV memory fits ({figures}); free memory, lower token_budget or block_size")
    return Budget(free_bytes, weights_bytes, working_bytes, graph_bytes, layout.block_bytes, layout.block_size, wanted)

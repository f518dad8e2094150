"""What a simulated replica is like: plain figures, drawn by a scenario or given by whoever starts one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """Times in seconds."""

    node: str
    num_blocks: int
    block_size: int
    max_batch: int
    max_model_len: int
    token_budget: int
    depth: int = 2  # steps that are issued before the first of them has retired
    at_once: int = 1  # more: its host waits for its steps, and takes up to so many in one go; `depth` means nothing
    step_base_s: float = 0.008
    per_token_s: float = 0.0002
    end_one_in: int = 40
    model: str = "m"
    weights: str = ""  # other ones than those of its model's name
    key: bytes = b"simulated"
    num_noises: int = 1  # 1: all replicas draw the same tokens; else a replica has one of so many noises of its own
    holds: float = 0.0  # chance that it is not known yet what may come next of a sequence, for each before each step
    num_ranks: int = 1  # each holds its slice of every block; a replica lives for as long as all of them do

    @property
    def content(self) -> str:
        """What its blocks and draws depend on."""
        return self.weights or self.model

    @property
    def fingerprint(self) -> str:
        """Of the layout of its blocks: so are they cut into slices."""
        return fingerprint_of(self.num_ranks)


def fingerprint_of(num_ranks: int) -> str:
    return f"simulated of {num_ranks}"

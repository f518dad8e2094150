"""What a torture found, as lines for people and as one JSON file; and whether that is a failure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cluster.bench.report import Row, machine, render, versions
from cluster.torture.fires import Fire
from cluster.torture.streams import Seen

MAX_PAUSE_S, MAX_ADMISSION_S = 2.0, 5.0
_AFTER_S = 15.0
"""The first token of what was asked so long after a fire at most is its doing, and none behind the next."""


class Verdict:
    """Of one torture. `left`: what the cluster still held when it was quiet, and what `down` left. `judges_times`:
    tokens came at a fixed pace, so that pauses and first tokens are the cluster's doing."""

    def __init__(
        self,
        seen: Seen,
        fires: Sequence[Fire],
        failure: str,
        left: Sequence[str],
        seed: int,
        *,
        judges_times: bool = False,
    ) -> None:
        self.seen = seen
        self.fires = fires
        self.failure = failure
        self.left = list(left)
        self.seed = seed
        self.late = self._late() if judges_times else []

    @property
    def holds(self) -> bool:
        """It burned, no stream was lost or wrong, none paused for too long, and nothing is left."""
        seen = self.seen
        is_bad = seen.lost or seen.wrong or self.late or self.left or self.failure
        return not is_bad and seen.equal > 0 and bool(self.fires)

    def _late(self) -> list[str]:
        """Of each fire in which one process of a kind of which another is there, or the scheduler, was killed."""
        found = []
        for row in self.rows():
            if " and " in str(row["fire"]) or not str(row["fire"]).endswith(" killed"):
                continue
            for column, most in (("p99", MAX_PAUSE_S), ("first token s, longest", MAX_ADMISSION_S)):
                seconds = row[column]
                if isinstance(seconds, float) and seconds > most:
                    found.append(f"{row['fire']}: {column} {seconds:.2f} s, at most {most:g} s")
        return found

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for name in sorted({fire.name for fire in self.fires}):
            fires = [fire for fire in self.fires if fire.name == name]
            pauses = sorted(seconds for fire in fires for seconds in self._pauses(fire))
            first = sorted(seconds for fire in fires for seconds in self._admissions(fire))
            rows.append(
                {
                    "fire": name,
                    "times": len(fires),
                    "streams": len(pauses),
                    "pause s, median": _at(pauses, 0.5),
                    "p99": _at(pauses, 0.99),
                    "longest": _at(pauses, 1.0),
                    "first token s, longest": _at(first, 1.0),
                }
            )
        return rows

    def _pauses(self, fire: Fire) -> list[float]:
        """The longest pause of each stream that paused when it burned. Of several that burned in one pause the first is
        what it is of. Of beams only the end is told."""
        before = max((other.at for other in self.fires if other.at < fire.at), default=-1e18)
        return [
            pause.seconds
            for pause in self.seen.pauses
            if pause.kind != "beams" and before < pause.began - 0.5 <= fire.at <= pause.began + pause.seconds
        ]

    def _admissions(self, fire: Fire) -> list[float]:
        """How long what was asked behind it, and before the next, waited for its first token: until the next burned."""
        after = min((other.at for other in self.fires if other.at > fire.at), default=1e18)
        return [
            min(seconds, after - asked)
            for asked, seconds in self.seen.first_tokens
            if fire.at <= asked < after and asked <= fire.at + _AFTER_S
        ]

    def lines(self) -> list[str]:
        seen = self.seen
        told = [render(self.rows())] if self.fires else []
        told += [f"WRONG {line}" for line in seen.wrong[:20]]
        told += [f"LOST {line}" for line in seen.lost[:20]]
        told += [f"LATE {line}" for line in self.late]
        told += [f"LEFT {line}" for line in self.left]
        if self.failure:
            told.append(f"FAILED {self.failure}")
        if not self.fires:
            told.append("FAILED nothing burned: give more minutes, or less time between two fires")
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.by_kind.items()))
        told.append(
            f"{seen.equal:,} streams equal ({kinds}), {len(seen.wrong)} wrong, {len(seen.lost)} lost, "
            f"{len(self.fires)} fires, {seen.num_tokens:,} tokens, seed {self.seed}"
        )
        return told

    def write(self, file: Path) -> None:
        file.write_text(
            json.dumps(
                {
                    "machine": machine(),
                    "versions": versions(),
                    "seed": self.seed,
                    "equal": self.seen.equal,
                    "kinds": dict(self.seen.by_kind),
                    "wrong": self.seen.wrong,
                    "lost": self.seen.lost,
                    "late": self.late,
                    "left": self.left,
                    "failure": self.failure,
                    "fires": [{"at_s": fire.at - self.fires[0].at, "what": fire.name} for fire in self.fires],
                    "pauses": self.rows(),
                    "holds": self.holds,
                },
                indent=1,
            )
            + "\n"
        )


def _at(values: Sequence[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None

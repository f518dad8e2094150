"""`quire simulate --mutate N`: would the histories see a mistake that somebody makes in one of the machines?

N mutations are drawn from the seed; each runs in a process of its own, on the same histories, until one of them fails
or all have passed; what never happens any more in all of these, as moves do otherwise, is seen too. What was found is
appended to a file at once, so that a run can be interrupted and gone on with. Those that live are listed;
`survivors.json` beside this file holds the ones that are known to change nothing, and why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from cluster.sim.mutation import Mutation, import_mutated, mutations_of, source_digest

MACHINES = (
    "cluster.centre",
    "cluster.desk",
    "cluster.gateway.door",
    "cluster.register",
    "cluster.links.dialer",
    "cluster.links.listener",
    "cluster.links.numbers",
)
"""The modules and packages of the machines that histories run."""
NOT_RUN = ("journal", "notes", "pauses", "rates", "replay")
"""Files of theirs that write or read for people, or say only what something costs: no promise hangs on them."""
MOST_HISTORIES = 500
HANGS_S = 60
"""Of computing: a history of a second or so that takes so long goes round in circles."""
ENOUGH = 200
"""Histories of which each thing that is wanted is met by some: a twentieth of them meets it."""
SURVIVORS = Path(__file__).with_name("survivors.json")


@dataclass(frozen=True, slots=True)
class MutantFound:
    """What became of one mutation. `history`: the one that saw it, counted from 1; 0: none did."""

    name: str
    digest: str
    history: int
    failure: str


def machine_modules() -> list[str]:
    root = Path(__file__).resolve().parents[2]
    modules = []
    for name in MACHINES:
        bare = root.joinpath(*name.split("."))
        files = sorted(bare.glob("*.py")) if bare.is_dir() else [bare.with_suffix(".py")]
        for file in files:
            if file.stem != "__init__" and file.stem not in NOT_RUN:
                modules.append(name if file.stem == bare.name and not bare.is_dir() else f"{name}.{file.stem}")
    return modules


def draw(num: int, seed: int) -> list[Mutation]:
    """So many mutations of all that are possible, drawn without repetition."""
    every = [mutation for module in machine_modules() for mutation in mutations_of(module)]
    return Random(f"mutations/{seed}").sample(every, min(num, len(every)))


def known_survivors() -> dict[str, str]:
    """By name: why nothing can be seen of it."""
    return dict(json.loads(SURVIVORS.read_text())) if SURVIVORS.exists() else {}


def run_mutations(
    mutations: list[Mutation], histories: int, jobs: int, results: Path, say: Callable[[MutantFound], None]
) -> list[MutantFound]:
    """Runs those of which `results` says nothing yet for their present source; returns what is known of all."""
    known = {(found.name, found.digest): found for found in _read(results)}
    digests = {mutation.module: source_digest(mutation.module) for mutation in mutations}
    missing = [mutation for mutation in mutations if (mutation.name, digests[mutation.module]) not in known]
    with ThreadPoolExecutor(jobs) as threads, results.open("a") as file:
        waiting = {threads.submit(_try, mutation, digests[mutation.module], histories) for mutation in missing}
        try:
            for future in as_completed(waiting):
                found = future.result()
                known[found.name, found.digest] = found
                file.write(json.dumps(asdict(found)) + "\n")
                file.flush()
                say(found)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [known[mutation.name, digests[mutation.module]] for mutation in mutations]


def _read(results: Path) -> Iterator[MutantFound]:
    if results.exists():
        for line in results.read_text().splitlines():
            yield MutantFound(**json.loads(line))


def _try(mutation: Mutation, digest: str, histories: int) -> MutantFound:
    """In a process of its own: what is imported changed must not be imported before."""
    command = [sys.executable, "-m", "cluster.sim.mutants", json.dumps(asdict(mutation)), str(histories)]
    with tempfile.TemporaryDirectory(prefix="quire-mutant-") as folder:
        # Compiled loops of the changed source must not be found in the cache of the unchanged one, nor stay there.
        surroundings = {**os.environ, "NUMBA_CACHE_DIR": folder}
        ran = subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False)
    last = ran.stdout.strip().splitlines()[-1:]
    if ran.returncode == 0 and last:
        history, failure = json.loads(last[0])
        return MutantFound(mutation.name, digest, history, failure)
    error = ran.stderr.strip().splitlines()[-1:] or [f"it ended with {ran.returncode}"]
    return MutantFound(mutation.name, digest, 1, error[0])


def _child(mutation: Mutation, histories: int) -> None:
    import_mutated(mutation)
    from cluster.sim.campaign import Summary, run_seed
    from cluster.sim.coverage import WANTED

    summary = Summary()

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"a history took more than {HANGS_S} s of computing")

    signal.signal(signal.SIGPROF, hangs)
    for seed in range(histories):
        signal.setitimer(signal.ITIMER_PROF, HANGS_S)
        try:
            verdict = run_seed(seed, with_faults=True)
            summary.add(verdict)
            failure = verdict.failure
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if failure:
            print(json.dumps((seed + 1, failure[:300])))
            return
    never = [what for what in WANTED if not summary.met[what]] if histories >= ENOUGH else []
    print(json.dumps((histories, f"no history met: {', '.join(never)}") if never else (0, "")))


if __name__ == "__main__":
    _child(Mutation(**json.loads(sys.argv[1])), int(sys.argv[2]))

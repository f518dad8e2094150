"""The log lines of a cluster whose processes run on several machines: this machine's, and those of the other nodes.

`quire logs` uses it where the cluster runs on a Ray that other machines may have joined. Each node reads its own files,
in a task with a deadline; a node that does not answer is named, and the others' lines are shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.lifecycle.ray_connection import quiet_ray
from cluster.lifecycle.running import Running
from cluster.watching.logs import of_last_run, read_lines

ANSWER_S = 10.0
Read = Callable[..., list[dict[str, Any]]]


@contextmanager
def lines_of_all_nodes(running: Running, folder: Path, say: Callable[[str], None]) -> Iterator[Read]:
    """A function like `read_lines`, without its folder: every node has its logs at that path."""
    with quiet_ray(running):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here, silent = ray.get_runtime_context().get_node_id(), set()
        task = ray.remote(read_lines)

        def read(**selection: Any) -> list[dict[str, Any]]:
            asked = {}
            for node in ray.nodes():
                name = str(node["NodeManagerAddress"])
                if node["Alive"] and node["NodeID"] != here and name not in silent:
                    where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                    chosen = task.options(num_cpus=0, max_retries=0, scheduling_strategy=where)
                    asked[name] = chosen.remote(folder, **selection)
            found = read_lines(folder, **selection)
            done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
            for name, reference in asked.items():
                try:
                    found += ray.get(reference) if reference in done else _none(f"no answer for {ANSWER_S:g} s")
                except (ray.exceptions.RayError, OSError) as error:
                    silent.add(name)
                    why = " ".join(str(getattr(error, "cause", None) or error).split())[-200:]
                    say(f"the lines of node {name} are missing: {why}")
            found.sort(key=lambda line: str(line["time"]))
            return found if selection.get("request") else of_last_run(found)

        yield read


def _none(why: str) -> list[dict[str, Any]]:
    raise OSError(why)

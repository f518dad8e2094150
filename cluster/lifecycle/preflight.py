"""What `quire up` checks before it starts anything: each thing that cannot work is one line, and nothing waits.

Called in a process that is connected to Ray. On a Ray of our own everything is looked at here; where there may be other
machines each node looks for itself, in a task with a deadline, and all must agree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import Any

from cluster import __version__
from cluster.errors import ConfigError, QuireError, Unavailable
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.placing import bundle
from cluster.sizes import format_bytes, parse_bytes
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL

NODE_S = 60.0
MIN_DESCRIPTORS = 256
_FEWER = {"CPU": "fewer --workers or a lower --cpus-per-worker", "GPU": "fewer --workers, or --device cpu"}
# Files that say which model a folder holds; the weights themselves are too large to be read here.
NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node is. `problem`: why it cannot take part; then the rest says nothing."""

    problem: str
    version: str
    protocols: tuple[int, int]
    models: dict[str, str]
    weights_bytes: int
    free_bytes: int


def look(models: Sequence[str], files: Sequence[str]) -> NodeReport:
    """Looks at the node that it runs on: can it read the models and the files of the doors, and which are they?"""
    from worker.model import checkpoint

    hashes: dict[str, str] = {}
    problem, weights_bytes = "", 0
    try:
        for model in models:
            folder = checkpoint.find_folder(model)
            checkpoint.check_config(folder)
            paths = checkpoint.check_weights(folder)
            weights_bytes += sum(path.stat().st_size for path in paths)
            hashes[model] = _hash(folder, paths)
        for file in files:
            with Path(file).open("rb"):
                pass
    except (QuireError, OSError) as error:
        problem = str(error)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return NodeReport(problem, __version__, (OLDEST_PROTOCOL, NEWEST_PROTOCOL), hashes, weights_bytes, free)


def _hash(folder: Path, weights: Sequence[Path]) -> str:
    """Names a model by its configuration and index, and by the sizes of its weight files."""
    digest = hashlib.sha256()
    for name in NAMES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    for path in weights:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def check_early(settings: ClusterSettings) -> None:
    """What this machine can know to be wrong before Ray is started. Raises `ConfigError` or `ModelError`."""
    if settings.address:
        return
    for model in settings.models:
        check_model(model.path, settings.tp)
    _check_this_machine(settings)


def check_model(path: str, tp: int) -> None:
    """That a folder or file on this machine holds a model that can be served by so many ranks. Raises `ModelError`."""
    from worker.model import checkpoint

    # A hub id is not looked up here: that would download it before anything else is checked.
    if path == checkpoint.DEMO or "/" not in path or path.startswith((".", "/", "~")) or Path(path).exists():
        config = checkpoint.check_config(checkpoint.find_folder(path))
        checkpoint.check_heads(config, tp)


def _check_this_machine(settings: ClusterSettings) -> None:
    _, most = getrlimit(RLIMIT_NOFILE)
    if most != RLIM_INFINITY and most < MIN_DESCRIPTORS:
        told = f"a process may open {most:,} files here, and {MIN_DESCRIPTORS:,} are needed"
        raise ConfigError(f"{told}; raise that bound (`ulimit -Hn`)")
    gpus = num_gpus()
    if settings.device == "cuda" and not gpus:
        raise ConfigError("device is cuda, and this machine shows no NVIDIA device; give --device cpu, or auto")
    device = "cuda" if settings.device == "auto" and gpus else settings.device
    have = {"CPU": float(num_cpus()), "GPU": float(gpus)}
    for resource, each in bundle(replace(settings, device=device)).items():
        if settings.most_workers * each > have[resource]:
            raise ConfigError(
                f"{_in_words(settings.most_workers, settings.tp)} need {settings.most_workers * each:g} {resource}, "
                f"and this machine has {have[resource]:g}; give {_FEWER[resource]}"
            )


def leave_room(settings: ClusterSettings) -> ClusterSettings:
    """Where nobody said what Ray books for a worker, and the Ray is our own: a CPU, or less, so that as many workers
    again, of a model that is loaded later, find room."""
    if settings.address or settings.cpus_per_worker is not None:
        return settings
    share = int(1_000 * num_cpus() / (2 * settings.most_workers)) / 1_000
    return replace(settings, cpus_per_worker=min(1.0, share))


def num_cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """Those that this process may use, by their device files: nothing that would take seconds to import is asked."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([one for one in visible.split(",") if one.strip()]))


def preflight(settings: ClusterSettings) -> None:
    """Raises `ConfigError`, `ModelError` or `Unavailable`; returns if nothing speaks against starting."""
    if settings.tp > 1:
        from worker.model.loading import check_slices

        for model in settings.models:
            check_slices(model.path, settings.tp)
    check_resources(settings)
    files = [path for path in (settings.tls_certificate, settings.tls_key, settings.client_authority) if path]
    if not settings.address:
        compare(settings, {"this machine": look([model.path for model in settings.models], files)})
    else:
        compare(settings, _ask_nodes(settings, files))


def check_resources(settings: ClusterSettings) -> None:
    """What Ray can never place is named at once, with the figures."""
    import ray

    have, num_ranks = ray.cluster_resources(), settings.workers * len(settings.model) * settings.tp
    for resource, each in bundle(settings).items():
        needed = num_ranks * each
        if have.get(resource, 0.0) < needed:
            raise ConfigError(
                f"{_in_words(num_ranks, settings.tp)} need {needed:g} {resource}, and Ray has "
                f"{have.get(resource, 0.0):g}; join more nodes, or give {_FEWER[resource]}"
            )
        most = max((node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if most < settings.tp * each:
            raise ConfigError(
                f"the {settings.tp} ranks of a worker need {settings.tp * each:g} {resource} on one node, and none has "
                f"more than {most:g}; give a smaller --tp"
            )


def _in_words(num_ranks: int, tp: int) -> str:
    return f"{num_ranks // tp} workers" + (f" of {tp} ranks" if tp > 1 else "")


def _ask_nodes(settings: ClusterSettings, files: Sequence[str]) -> dict[str, NodeReport]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, asked = ray.get_runtime_context().get_node_id(), {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
            # The doors, whose files they are, open on the node where `up` was typed.
            reference = task.remote([model.path for model in settings.models], files if node["NodeID"] == here else ())
            asked[f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = reference
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_S)
    found = {}
    for name, reference in asked.items():
        if reference not in done:
            raise Unavailable(f"{name} has not answered for {NODE_S:g} s; end it, or look at its raylet's log")
        try:
            found[name] = ray.get(reference)
        except ray.exceptions.RayError as error:
            line = " ".join(str(getattr(error, "cause", None) or error).split())[-300:]
            raise ConfigError(f"{name} cannot run Quire {__version__}: {line}; install the same there") from error
    return found


def compare(settings: ClusterSettings, reports: dict[str, NodeReport]) -> None:
    """Every node must be able to serve, and serve the same."""
    (first_name, first), *others = reports.items()
    for name, report in reports.items():
        if report.problem:
            raise ConfigError(f"{name}: {report.problem}")
    for name, report in others:
        pairs: list[tuple[str, Any, Any]] = [
            ("Quire", first.version, report.version),
            ("the protocol", first.protocols, report.protocols),
        ]
        pairs += [(f"model {model}", first.models[model][:12], report.models[model][:12]) for model in first.models]
        for what, here, there in pairs:
            if here != there:
                raise ConfigError(f"{what} is {here} on {first_name} and {there} on {name}; make them the same")
    if settings.device == "cpu" and len(reports) == 1:
        # The pools come on top; each worker measures for itself what is left for its own.
        needed = first.weights_bytes * settings.workers
        if settings.host_memory != "0":
            needed += parse_bytes(settings.host_memory, "host_memory")
        if needed > first.free_bytes:
            raise ConfigError(
                f"weights and host memory of {settings.workers} workers need {format_bytes(needed)}, and "
                f"{first_name} has {format_bytes(first.free_bytes)} free; give fewer --workers or less --host-memory"
            )

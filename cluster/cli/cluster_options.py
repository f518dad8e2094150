"""The options of `quire up` and `quire serve`: one for each setting of a cluster, with its default and its QUIRE_ name.

The settings themselves, their values and their checks are in `cluster/lifecycle/cluster_settings.py`; here stands how a
person is told of each. A command that takes them all is written once and given its parameters by `takes_settings`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from cluster.lifecycle.cluster_settings import ENVIRONMENT, ClusterSettings

# What each setting means, and its default in words where the value itself does not say it.
MODEL, DOORS, RAY, WAYS, WATCHING = "Models and memory", "Doors", "Ray", "Decisions", "Watching"
OPTIONS: dict[str, tuple[str, str, str]] = {
    "model": (MODEL, "Folder, GGUF file or hub id, or NAME=FOLDER; repeatable, the first is the default.", "demo"),
    "workers": (MODEL, "Workers of each model.", ""),
    "tp": (MODEL, "Accelerators that share one copy of the model.", ""),
    "device": (MODEL, "cpu, cuda or auto.", ""),
    "dtype": (MODEL, "auto, float32, bfloat16 or float16.", ""),
    "kv_blocks": (MODEL, "Blocks of each worker's pool.", "what memory allows"),
    "kv_memory": (MODEL, "Or its size, such as 2GiB.", "what memory allows"),
    "gpu_memory_utilization": (MODEL, "Share of a card's memory that a worker takes in all.", "what is free"),
    "block_size": (MODEL, "Slots in a block, 1 to 256.", ""),
    "max_batch": (MODEL, "Sequences of one worker at once.", ""),
    "token_budget": (MODEL, "Tokens of one step, decodes and prefill together.", "what suits the device"),
    "host_memory": (MODEL, "Host memory of each node for swapped blocks; 0: none.", ""),
    "host": (DOORS, "Address to listen on.", ""),
    "port": (DOORS, "Port of the first gateway; the others count up. 0: any.", ""),
    "http_port": (DOORS, "Port of the first gateway's HTTP door; 0: none.", "8000, or the next that is free"),
    "page_port": (DOORS, "Port of the page in a browser; 0: none.", "8001, or the next that is free"),
    "admin_port": (DOORS, "Port of the operators' door; 0: any.", ""),
    "metrics_port": (DOORS, "Port on which Prometheus finds /metrics; 0: any.", ""),
    "gateways": (DOORS, "Front doors.", ""),
    "tls_certificate": (DOORS, "PEM file of the doors' certificate.", "no TLS"),
    "tls_key": (DOORS, "PEM file of its key.", "no TLS"),
    "tls_authority": (DOORS, "Who signed it, for commands on this machine.", "one that the system knows"),
    "client_authority": (DOORS, "Let in only clients that it signed.", "anybody with a token"),
    "tokens": (DOORS, "Token file, by `quire certificates` or `quire tenants`.", "no tokens"),
    "address": (RAY, "A Ray cluster that runs: auto or HOST:PORT.", "one of our own"),
    "cpus_per_worker": (RAY, "CPUs that Ray books for a worker.", "1, or less so that as many again find room"),
    "autoscale": (RAY, "Workers by pressure, such as 1:4.", "off"),
    "preemption": (WAYS, "cheapest, swap or recompute.", ""),
    "allocator": (WAYS, "lru, fifo or buddy.", ""),
    "placement": (WAYS, "scored, round_robin or least_loaded.", ""),
    "journal": (WATCHING, "Write every event to this file, for `quire replay`.", "none"),
    "log_level": (WATCHING, "debug, info, warning or error.", ""),
    "log_dir": (WATCHING, "Folder for log files.", "in the state folder"),
    "trace": (WATCHING, "OpenTelemetry spans: file, or an exporter such as otlp.", "none"),
}
CONFIG = "A TOML file with these names as keys."


def takes_settings(command: Callable[..., None], *, leave_out: str = "") -> Callable[..., None]:
    """Gives `command` an option for each setting, in the place of its `**given`; those of its own come first."""
    own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    own = [one.replace(annotation=hints[one.name], kind=one.KEYWORD_ONLY) for one in own]
    kinds = {field.name: field for field in fields(ClusterSettings)}
    for name, (panel, told, default) in OPTIONS.items():
        if name == leave_out:
            continue
        field = kinds[name]
        option = typer.Option(
            help=f"{told} (default {default or field.default}; {ENVIRONMENT}{name.upper()})",
            show_default=False,
            rich_help_panel=panel,
        )
        own.append(_parameter(name, _kind(str(field.type)), option))
    own.append(_parameter("config", Path | None, typer.Option(help=CONFIG + " (default none)", show_default=False)))
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in own}
    return command


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _kind(written: str) -> Any:
    if written.startswith("tuple"):
        return list[str] | None
    for kind in (int, float):
        if written.startswith(kind.__name__):
            return kind | None
    return str | None


def read_settings(given: Mapping[str, Any]) -> ClusterSettings:
    """The settings behind what a command was given, the environment and a file. Raises `ConfigError`."""
    from cluster.lifecycle.cluster_settings import gather

    words = {name: value for name, value in given.items() if name != "config"}
    return gather({**words, "model": tuple(words.get("model") or ())}, given.get("config"))

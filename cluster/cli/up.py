"""`quire up` and `quire down`: a cluster from nothing, and nothing from a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import exits


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)


def up(
    model: Annotated[
        list[str] | None, typer.Option(help="Folder or hub id; give several times for several models. Default: demo.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of each model.")] = None,
    tp: Annotated[int | None, typer.Option(help="Accelerators that share one copy of the model.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    kv_blocks: Annotated[int | None, typer.Option(help="Blocks of each worker's pool.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="Or its size, such as 2GiB.")] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of a card's memory that a worker takes in all.")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Slots in a block, 1 to 256.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Sequences of one worker at once.")] = None,
    token_budget: Annotated[int | None, typer.Option(help="Tokens of one step, decodes and prefill together.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="Host memory of each node for swapped blocks.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the first gateway.")] = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Port of the first gateway's HTTP door; 0: none. Default: 8000, or the next free."),
    ] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the operators' door.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port on which Prometheus finds /metrics.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Front doors.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="PEM file of the doors' certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file of its key.")] = None,
    tls_authority: Annotated[str | None, typer.Option(help="Who signed it, for commands on this machine.")] = None,
    client_authority: Annotated[str | None, typer.Option(help="Let in only clients that it signed.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token file, by `quire certificates`.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster that runs: auto or HOST:PORT.")] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="CPUs that Ray books for a worker.")] = None,
    autoscale: Annotated[str | None, typer.Option(help="Workers by pressure, such as 1:4. Default: off.")] = None,
    preemption: Annotated[str | None, typer.Option(help="cheapest, swap or recompute.")] = None,
    allocator: Annotated[str | None, typer.Option(help="lru, fifo or buddy.")] = None,
    placement: Annotated[str | None, typer.Option(help="scored, round_robin or least_loaded.")] = None,
    journal: Annotated[str | None, typer.Option(help="Write every event to this file, for `quire replay`.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_dir: Annotated[str | None, typer.Option(help="Folder for log files. Default: in the state folder.")] = None,
    trace: Annotated[str | None, typer.Option(help="OpenTelemetry spans: file, or an exporter such as otlp.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with these names as keys.")] = None,
) -> None:
    """Start a cluster: scheduler, workers, host memory and gateways, and wait until it serves."""
    from cluster.lifecycle.cluster_settings import gather
    from cluster.lifecycle.launch import up as launch

    given = {name: value for name, value in locals().items() if name not in ("config", "gather", "launch")}
    settings = gather({**given, "model": tuple(model or ())}, config)
    running = launch(settings, print)
    print(f'try: quire generate "Once upon a time" --address {running.gateway}   quire top   quire down')


def down(
    grace: Annotated[float, typer.Option(help="Seconds that requests have to end by themselves.")] = 5.0,
) -> None:
    """End everything that `quire up` started, and prove that nothing is left."""
    from cluster.lifecycle.launch import down as end

    if end(print, grace):
        raise typer.Exit(exits.FAILED)

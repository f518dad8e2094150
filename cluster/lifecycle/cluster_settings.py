"""What a cluster is made of: the settings of `quire up`, from the command line, the environment and a file.

The only place where the three are read. Names are the same in all: `--kv-blocks`, QUIRE_KV_BLOCKS, kv_blocks in the
TOML file. The command line wins over the environment, which wins over the file. Values are checked here once.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, unreadable
from cluster.lifecycle.autoscale import ScaleBounds
from cluster.lifecycle.served import ModelToServe, read_models
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of, load_tokens
from cluster.serving.public_port import PortTls, PublicPort
from cluster.settings import SchedulerSettings, WorkerSettings
from cluster.sizes import parse_bytes
from cluster.watching.logs import LEVELS

ENVIRONMENT = "QUIRE_"
OPERATOR = "operator"
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One cluster. Each field is an option of `quire up`, but for the last two: those are for file and environment."""

    # Each a folder, a file or a hub id, or NAME=FOLDER.
    model: tuple[str, ...] = ("demo",)
    workers: int = 2
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"
    kv_blocks: int | None = None
    kv_memory: str | None = None
    gpu_memory_utilization: float | None = None
    block_size: int = 16
    max_batch: int = 256
    token_budget: int | None = None
    host_memory: str = "256MiB"
    host: str = "127.0.0.1"
    # Of the first gateway; those of the others count up from it.
    port: int = 50051
    # Of the first gateway's HTTP door; those of the others count up from it. 0: none. None: 8000, or the next that is
    # free, where the packages of `quire[http]` are installed.
    http_port: int | None = None
    # Of the page in a browser, on loopback. 0: none. None: 8001, or the next that is free.
    page_port: int | None = None
    admin_port: int = 50061
    # Prometheus reads the whole cluster there.
    metrics_port: int = 50062
    gateways: int = 1
    # PEM files of the doors, and the file of the tokens that they take, on the machine where `quire up` is typed.
    tls_certificate: str = ""
    tls_key: str = ""
    # With it gateways let only clients in whose certificate it signed (mutual TLS).
    client_authority: str = ""
    # The authority that signed `tls_certificate`, for this machine's own commands; empty: one that the system knows.
    tls_authority: str = ""
    tokens: str = ""
    # An existing Ray cluster ("auto" or HOST:PORT); empty: one of our own is started.
    address: str = ""
    # LEAST:MOST workers of each model, by queue and pool pressure; empty: their number is yours to change.
    autoscale: str = ""
    # CPUs that Ray books for one worker. None: 1, or less on a Ray of our own, so that as many again find room.
    cpus_per_worker: float | None = None
    preemption: str = "cheapest"
    allocator: str = "lru"
    placement: str = "scored"
    journal: str = ""
    # Log lines of this level and above; where they go (empty: the state folder); where spans go (empty: nowhere).
    log_level: str = "info"
    log_dir: str = ""
    trace: str = ""
    # Seconds of silence after which a worker is taken for dead.
    silence_s: float = 2.0
    # Seconds after which a step that has not ended is taken for hung, and its worker ends.
    hang_s: float = 60.0

    def __post_init__(self) -> None:
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("workers", self.workers, 1, 4096),
            ("tp", self.tp, 1, 64),
            ("gateways", self.gateways, 1, 256),
            ("port", self.port, 0, 65535),
            ("admin_port", self.admin_port, 0, 65535),
            ("http_port", self.http_port or 0, 0, 65535),
            ("metrics_port", self.metrics_port, 0, 65535),
            ("page_port", self.page_port or 0, 0, 65535),
            ("cpus_per_worker", self.booked_cpus, 0, 1024),
            ("silence_s", self.silence_s, 0.5, 600),
            ("hang_s", self.hang_s, 1, 3600),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; give {low:g} to {high:g}")
        self._check_ports()
        if not self.model:
            raise ConfigError("no model is given; name at least one")
        models = read_models(self.model)
        scaled = ScaleBounds.read(self.autoscale)
        if scaled is not None and not scaled.least <= self.workers <= scaled.most:
            raise ConfigError(f"workers is {self.workers}, outside of autoscale {self.autoscale}; give one within it")
        choices = (
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16", "float", "half")),
            ("preemption", self.preemption, ("cheapest", "recompute", "swap")),
            ("allocator", self.allocator, ("fifo", "lru", "buddy")),
            ("placement", self.placement, ("scored", "round_robin", "least_loaded")),
            ("log_level", self.log_level, LEVELS),
        )
        for name, chosen, known in choices:
            if chosen not in known:
                raise ConfigError(f"{name} is {chosen!r}; give one of {', '.join(known)}")
        if self.host_memory != "0":
            parse_bytes(self.host_memory, "host_memory")
        if self.kv_memory is not None:
            parse_bytes(self.kv_memory, "kv_memory")
        # What a worker would only find out once everything else has started.
        self.worker(models[0], b"")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key go together; give both, or neither")

    def gateway_ports(self) -> dict[str, int]:
        """The port of each gateway by its name; 0: any."""
        return {f"gateway-{number}": self.port and self.port + number for number in range(self.gateways)}

    def http_ports(self) -> dict[str, int]:
        """The port of each gateway's HTTP door by the gateway's name; 0: none."""
        first = self.http_port or 0
        return {f"gateway-{number}": first and first + number for number in range(self.gateways)}

    def ports(self) -> dict[str, tuple[int, str]]:
        """Every port that was asked for, by who listens there, with the name of its setting."""
        listed = {name: (port, "port") for name, port in self.gateway_ports().items()}
        listed |= {f"the HTTP door of {name}": (port, "http_port") for name, port in self.http_ports().items()}
        listed["the operators' door"] = (self.admin_port, "admin_port")
        listed["metrics"] = (self.metrics_port, "metrics_port")
        return {who: found for who, found in listed.items() if found[0]}

    def _check_ports(self) -> None:
        taken: dict[int, str] = {}
        for who, (port, name) in self.ports().items():
            option = f"--{name.replace('_', '-')}"
            if port > 65535:
                raise ConfigError(f"port {port} of {who} is above 65535; give a lower {option}, or fewer --gateways")
            if port in taken:
                raise ConfigError(f"port {port} is asked for by {taken[port]} and by {who}; give another {option}")
            taken[port] = who

    def gateway_door(self, port: int) -> PublicPort:
        """Where clients come in. Reads the token file."""
        authority = Path(self.client_authority) if self.client_authority else None
        tls = PortTls(Path(self.tls_certificate), Path(self.tls_key), authority) if self.tls_certificate else None
        return PublicPort(self.host, port, tls, load_tokens(Path(self.tokens)) if self.tokens else TokenBook())

    def admin_door(self, token: str) -> PublicPort:
        """Where operators come in: by a token with that right, or by the one that our own commands show."""
        door = self.gateway_door(self.admin_port)
        if not door.tokens:
            return door
        tls = replace(door.tls, client_authority=None) if door.tls is not None else None
        own = TokenEntry(digest_of(token), Caller(OPERATOR, frozenset({"admin"})))
        return replace(door, tls=tls, tokens=door.tokens.with_entry(own))

    @property
    def most_workers(self) -> int:
        """Processes of workers that may run at once, all ranks of all models that are named here."""
        bounds = ScaleBounds.read(self.autoscale)
        return len(self.model) * self.tp * (self.workers if bounds is None else bounds.most)

    @property
    def booked_cpus(self) -> float:
        return 1.0 if self.cpus_per_worker is None else self.cpus_per_worker

    def scheduler(self) -> SchedulerSettings:
        return SchedulerSettings(
            allocator=self.allocator,  # type: ignore[arg-type]
            preemption=self.preemption,  # type: ignore[arg-type]
            placement=self.placement,  # type: ignore[arg-type]
        )

    @property
    def models(self) -> tuple[ModelToServe, ...]:
        """The first is the one that clients get who name none."""
        return read_models(self.model)

    def worker(self, model: ModelToServe, hash_key: bytes) -> WorkerSettings:
        return WorkerSettings(
            model=model.path,
            served_name=model.name,
            dtype=self.dtype,
            device=self.device,
            block_size=self.block_size,
            kv_blocks=self.kv_blocks,
            kv_memory=self.kv_memory,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_batch=self.max_batch,
            token_budget=self.token_budget,
            hash_key=hash_key,
            share_pool=True,
            show_progress=False,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def gather(
    given: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] | None = None
) -> ClusterSettings:
    """Settings from a file, the environment, and what was given on the command line (None: not given)."""
    known = {field.name: field for field in fields(ClusterSettings)}
    values: dict[str, Any] = {}
    if file is not None:
        values |= _from_file(file, known)
    for name, text in (os.environ if environment is None else environment).items():
        key = name.removeprefix(ENVIRONMENT).lower()
        if name.startswith(ENVIRONMENT) and key in known:
            values[key] = _typed(key, text, str(known[key].type))
    values |= {name: value for name, value in given.items() if value is not None and value != ()}
    if isinstance(values.get("model"), str):
        values["model"] = (values["model"],)
    if "model" in values:
        values["model"] = tuple(values["model"])
    return ClusterSettings(**values)


def _from_file(file: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"the settings file {file} has more than {MAX_FILE_BYTES:,} bytes; is it the right one?")
        read = tomllib.loads(text.decode())
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(f"the settings file {file}", error) from error
    for name, value in read.items():
        if name not in known:
            raise ConfigError(f"{file} has a setting {name!r} that there is not; there are {', '.join(known)}")
        _check_kind(file, name, value, str(known[name].type))
    return read


def _check_kind(file: Path, name: str, value: Any, kind: str) -> None:
    """A value of the file is of the kind that its setting has."""
    if name == "model":
        fits, wanted = isinstance(value, str) or _are_texts(value), "a text or a list of texts"
    elif kind.startswith("int"):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kind.startswith("float"):
        fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, wanted = isinstance(value, str), "a text in quotes"
    if not fits:
        raise ConfigError(f"{file}: {name} is {value!r}; give {wanted}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _typed(name: str, text: str, kind: str) -> Any:
    try:
        if name == "model":
            return tuple(part for part in text.split(",") if part)
        if kind.startswith("int"):
            return int(text)
        return float(text) if kind.startswith("float") else text
    except ValueError as error:
        raise ConfigError(f"{ENVIRONMENT}{name.upper()} is {text!r}, which is no number") from error

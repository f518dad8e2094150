"""Every metric that there is: name, kind, labels and meaning. Collected in `metrics_gateway` and `metrics_scheduler`.

`deploy/WATCHING.md` and the dashboard are held against this list by a test; nothing else may invent a name.
"""

from __future__ import annotations

from cluster.watching.metrics import Described

GATEWAY = (
    Described(
        "requests_total",
        "counter",
        "Requests that ended: stop, length, cancelled, or the name of the error.",
        ("gateway", "model", "outcome"),
    ),
    Described("prompt_tokens_total", "counter", "Tokens of prompts of ended requests.", ("gateway", "model")),
    Described("cached_tokens_total", "counter", "Of these, tokens found in the prefix cache.", ("gateway", "model")),
    Described(
        "output_tokens_total", "counter", "Tokens that came from workers, of ended requests.", ("gateway", "model")
    ),
    Described(
        "time_to_first_token_seconds", "histogram", "From a request's arrival to its first token.", ("gateway", "model")
    ),
    Described(
        "inter_token_seconds",
        "histogram",
        "Between tokens of a sequence; those that came together share the time.",
        ("gateway", "model"),
    ),
    Described("request_seconds", "histogram", "From arrival to the end of a request.", ("gateway", "model")),
    Described("queue_seconds", "histogram", "Time that a request waited to be started, in all.", ("gateway", "model")),
    Described("gateway_open_requests", "gauge", "Requests under way at this gateway.", ("gateway",)),
    Described("gateway_connected", "gauge", "1 while the gateway hears the scheduler.", ("gateway",)),
    Described(
        "gateway_stale_tokens_total", "counter", "Token messages of nobody or of attempts that are over.", ("gateway",)
    ),
)

SCHEDULER = (
    Described("up", "gauge", "1 for each part that answered this scrape.", ("part",)),
    Described("build_info", "gauge", "1, with the version as a label.", ("version",)),
    Described("scheduler_epoch", "gauge", "Number of the scheduler's life: it grows with each restart."),
    Described("scheduler_uptime_seconds", "gauge", "Since this scheduler started."),
    Described("scheduler_turn_seconds", "histogram", "Processor-side length of the scheduler's turns."),
    Described("scheduler_longest_turn_seconds", "gauge", "The longest turn so far."),
    Described("scheduler_events_total", "counter", "How often other things happened at the scheduler.", ("event",)),
    Described("control_refused_total", "counter", "Connections to the control port that were closed.", ("why",)),
    Described(
        "requests",
        "gauge",
        "Requests under way by state: queued, parked, running, stopping, swapping, restoring, sealing.",
        ("model", "state"),
    ),
    Described("refused_total", "counter", "Requests that the scheduler refused, by gRPC status.", ("code",)),
    Described(
        "preemptions_total",
        "counter",
        "Requests taken off a worker: the way they went (swap, remote swap, recompute, ...) and why (memory, drain).",
        ("way", "reason"),
    ),
    Described("transfers_total", "counter", "Transfers of blocks that ended.", ("road", "outcome")),
    Described("swapped_bytes_total", "counter", "Bytes that went out to host memory and came back in.", ("way",)),
    Described("swap_seconds_total", "counter", "How long those transfers took, each from its order.", ("way",)),
    Described(
        "move_pause_steps",
        "histogram",
        "How long requests that were moved alive stood still, in steps of the worker that they left.",
    ),
    Described(
        "pool_blocks", "gauge", "Blocks of a pool by state; the states add up to the pool.", ("pool", "kind", "state")
    ),
    Described("pool_shared_blocks", "gauge", "Held blocks with more than one holder.", ("pool",)),
    Described("pool_block_bytes", "gauge", "Bytes of one block.", ("pool",)),
    Described("evictions_total", "counter", "Cached blocks that were given to somebody else.", ("pool",)),
    Described("workers", "gauge", "Replicas: serving, draining, or missing though wanted.", ("model", "state")),
    Described("worker_sequences", "gauge", "Sequences resident on a worker.", ("worker", "model")),
    Described("worker_max_batch", "gauge", "Sequences that it runs at once.", ("worker", "model")),
    Described("worker_steps_total", "counter", "Steps that a worker has retired.", ("worker", "model")),
    Described("worker_step_seconds", "gauge", "Moving average of a step.", ("worker", "model")),
    Described("worker_prefill_waiting_tokens", "gauge", "Prompt tokens not computed yet.", ("worker", "model")),
    Described("worker_silent_seconds", "gauge", "Since a worker was last heard of.", ("worker", "model")),
    Described(
        "dry_leases_total", "counter", "Steps in which a sequence stood still for want of a lease.", ("worker", "model")
    ),
    Described("block_seconds_total", "counter", "Memory held by tenants' ended requests.", ("tenant", "kind")),
)

ALL = (*SCHEDULER, *GATEWAY)

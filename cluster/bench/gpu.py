"""`quire bench gpu`: Llama 1B and 8B shapes with random weights on the GPU at hand, at batches of 1 to 256.

One command, no options needed: step time against the bytes that must be read, share of the GPU's read bandwidth, busy
share and tokens per second beside transformers, and a results file named after the GPU. `--rehearse` runs the same code
on a CPU with a tiny shape. It needs neither Ray nor a network.
"""

from __future__ import annotations

import argparse
import re

import torch

from cluster.bench.offline_gpu import decode_batches
from cluster.bench.offline_models import MAX_LEN, SHAPES, folder_of
from cluster.bench.report import Report

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(argv: list[str]) -> int:
    """Runs the benchmark; 1 if a check failed or there is no GPU."""
    args = _arguments(argv)
    report = Report("gpu", argv)
    if not args.rehearse and not torch.cuda.is_available():
        report.check("a GPU", False, "torch sees none; --rehearse runs the same code on the CPU")
        return report.finish(args.json)
    device = "cpu" if args.rehearse else "cuda"
    for shape in args.shape:
        for dtype in args.dtype:
            settings = {"dtype": dtype, "device": device}
            title = f"decode steps, {shape}, {dtype}, {device}"
            decode_batches(report, folder_of(shape), title, list(args.batches), args.prompt, **settings)
    return report.finish(args.json or _results_file())


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench gpu", description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with a tiny shape: figures mean nothing")
    parser.add_argument("--json", help="default: gpu-NAME.json here, named after the GPU")
    args = parser.parse_args(argv)
    args.shape = args.shape or (["14m"] if args.rehearse else ["1b", "8b"])
    args.dtype = args.dtype or (["float32"] if args.rehearse else ["bfloat16"])
    args.batches = args.batches or ([1, 4] if args.rehearse else list(BATCHES))
    if min(args.batches) < 1:
        parser.error(f"--batches has {min(args.batches)}; give 1 or more")
    if not 1 <= args.prompt <= MAX_LEN // 2:
        parser.error(f"--prompt is {args.prompt}; give 1 to {MAX_LEN // 2}")
    return args


def _results_file() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "rehearsal"
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"

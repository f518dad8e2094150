"""Beam search: the likeliest of many ways to go on, best first. Beams share the blocks that they have in common.

python deploy/examples/beams.py [GATEWAY]
"""

import sys

from cluster import Client


def main(gateway: str = "127.0.0.1:50051") -> None:
    with Client(gateway) as client:
        result = client.generate("Once upon a time", beam_width=4, n=3, max_tokens=24)
        for output in result.outputs:
            print(f"{output.score:8.3f}  {output.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

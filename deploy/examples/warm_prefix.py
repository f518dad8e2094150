"""A long prefix that many requests share is computed once, and kept until they come.

python deploy/examples/warm_prefix.py [GATEWAY]
"""

import sys

from cluster import Client


def main(gateway: str = "127.0.0.1:50051") -> None:
    prefix = "Mira had a small boat, and every morning she rowed it over the river to the market. " * 4
    with Client(gateway) as client:
        kept = client.cache_prefix(prefix, ttl_s=60.0)
        print(f"{kept} tokens of the prefix are kept for a minute")
        for result in client.generate_many(
            [prefix + end for end in ("One day", "At noon", "In winter")], temperature=0.0, max_tokens=16
        ):
            print(f"{result.num_cached_tokens} tokens were cached -> {result.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

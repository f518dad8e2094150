"""Two models in one cluster: `quire load PATH` brings the second one, and each request names its own.

python deploy/examples/two_models.py [GATEWAY]
"""

import sys

from cluster import Client


def main(gateway: str = "127.0.0.1:50051") -> None:
    with Client(gateway) as client:
        cards = client.models()
        print(f"served: {', '.join(card.name for card in cards)}")
        for card in cards:
            result = client.generate([1, 2, 3], model=card.name, temperature=0.0, max_tokens=12, ignore_eos=True)
            print(f"{card.name}: {list(result.outputs[0].token_ids)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

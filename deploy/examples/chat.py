"""A conversation: every answer is asked for with all turns before it, whose blocks are still cached.

python deploy/examples/chat.py [GATEWAY]
"""

import sys

from cluster import Client


def main(gateway: str = "127.0.0.1:50051") -> None:
    turns: list[dict[str, str]] = []
    with Client(gateway) as client:
        for question in ("Who lives in Alder Bridge?", "What does Otto do?"):
            turns.append({"role": "user", "content": question})
            result = client.generate(turns, temperature=0.0, max_tokens=48)
            answer = result.outputs[0].text.strip()
            turns.append({"role": "assistant", "content": answer})
            print(f"you: {question}\nmodel: {answer}\n({result.num_cached_tokens} prompt tokens were cached)")


if __name__ == "__main__":
    main(*sys.argv[1:2])

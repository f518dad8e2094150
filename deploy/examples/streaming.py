"""Tokens of several prompts as they come, over one stream.

python deploy/examples/streaming.py [GATEWAY]
"""

import sys

from cluster import Client


def main(gateway: str = "127.0.0.1:50051") -> None:
    prompts = ["Once upon a time", "Long ago"]
    with Client(gateway) as client:
        texts = ["" for _ in prompts]
        for news in client.stream_many(prompts, temperature=0.0, max_tokens=40):
            texts[news.prompt_index] += news.text
            print(f"[{news.prompt_index}] {news.text}", flush=True)
        for prompt, text in zip(prompts, texts, strict=True):
            print(f"{prompt!r} -> {text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

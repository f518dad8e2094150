"""A batch without a cluster, in this process: vLLM's offline names.

python deploy/examples/offline_batch.py [MODEL]
"""

import sys

from cluster import LLM, SamplingParams


def main(model: str = "demo") -> None:
    llm = LLM(model, quiet=True)
    prompts = ["Once upon a time", "Long ago", "One cold morning", "Every day"]
    for result in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=40)):
        print(f"{result.prompt!r} -> {result.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""OpenAI's own client against the HTTP door (`pip install openai`).

python deploy/examples/openai_client.py [http://127.0.0.1:8000/v1]
"""

import sys

import openai


def main(door: str = "http://127.0.0.1:8000/v1") -> None:
    client = openai.OpenAI(base_url=door, api_key="none")
    question = [{"role": "user", "content": "Who lives in Alder Bridge?"}]
    stream = client.chat.completions.create(model="demo", messages=question, max_tokens=40, temperature=0, stream=True)
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:2])

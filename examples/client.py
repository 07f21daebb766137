"""Part 3: ask a running server, first for whole answers and then for one that comes in pieces.

pocketlm serve                        # in one terminal
python examples/client.py             # in another
python examples/client.py http://127.0.0.1:8080
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:5000"


def generate(prompt: str, **parameters: Any) -> None:
    """Print one answer, or why there is none."""
    response = httpx.post(f"{URL}/generate", json={"prompt": prompt, **parameters}, timeout=60)
    answer = response.json()
    if response.is_success:
        print(f"\n{answer['generated_text']}")
        print(f"[{answer['inference_time_seconds']} s, {answer['parameters']}]")
    else:
        print(f"\n{response.status_code}: {answer['error']}")


def stream(prompt: str, **parameters: Any) -> None:
    """Print an answer as it comes: lines `data: {"text": ...}`, the whole answer, `data: [DONE]`."""
    body = {"prompt": prompt, "stream": True, **parameters}
    with httpx.stream("POST", f"{URL}/generate", json=body, timeout=60) as response:
        response.raise_for_status()
        print(f"\n{prompt}", end="")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                print(json.loads(line.removeprefix("data: ")).get("text", ""), end="", flush=True)
    print()


generate("Docker containers are")
generate("Machine learning infrastructure requires", max_length=80)
generate("The future of AI is", temperature=1.2)
generate("The future of AI is", temperature=2.5)  # refused, and the answer says why
stream("Kubernetes is a", max_length=40, temperature=0)

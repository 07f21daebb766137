"""What speculation by prompt look-up gains one stream: text that repeats itself, and text that does not.

Processor time of one thread after the first token, with guesses and without in turn; the median of
the ratios. The tokens are checked to be the same. Prints a table, then one JSON line.

    python benchmarks/speculation.py [--model bundled] [--dtype int8] [--rounds 7] [--tokens 2 4 8]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from pocketlm import LLM, SamplingParams

NUM_NEW_TOKENS = 128
SENTENCE = "The quick brown fox jumps over the lazy dog."


def measure(llm: LLM, prompt: list[int], temperature: float) -> tuple[list[int | None], float, int]:
    """The tokens drawn after the first one, the seconds and the steps they took."""
    engine = llm.model.engine
    params = SamplingParams(max_tokens=NUM_NEW_TOKENS, temperature=temperature, ignore_eos=True)
    engine.add(prompt, params, seed=1)
    engine.step()
    token_ids, num_steps, start = [], 0, time.process_time()
    while engine.has_work:
        token_ids += [output.token_id for output in engine.step()]
        num_steps += 1
    return token_ids, time.process_time() - start, num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()

    # One thread: others that wait for work would be counted.
    llms = {
        k: LLM(args.model, dtype=args.dtype, num_threads=1, speculative_tokens=k) for k in (0, *args.tokens)
    }
    rng = random.Random(1)
    repetitive = llms[0].model.tokenizer.encode(f"{SENTENCE} {SENTENCE} The quick brown fox")
    other = [rng.randrange(1, 500) for _ in range(32)]
    cases = {
        "repetitive prompt, greedy": (repetitive, 0.0),
        "other prompt, greedy": (other, 0.0),
        "other prompt, temperature 1": (other, 1.0),
    }
    result = {}
    print(f"{args.model}, {args.dtype}: times as fast as without guesses (tokens a step)")
    print(f"{'speculative_tokens':28}" + "".join(f"{k:>14}" for k in args.tokens))
    for name, (prompt, temperature) in cases.items():
        ratios: dict[int, list[float]] = {k: [] for k in args.tokens}
        per_step = {}
        for _ in range(args.rounds):
            expected, plain_s, _ = measure(llms[0], prompt, temperature)
            for k in args.tokens:
                token_ids, seconds, num_steps = measure(llms[k], prompt, temperature)
                assert token_ids == expected
                ratios[k].append(plain_s / seconds)
                per_step[k] = len(token_ids) / num_steps
        medians = {k: statistics.median(ratios[k]) for k in args.tokens}
        print(f"{name:28}" + "".join(f"{medians[k]:>7.2f} ({per_step[k]:.2f})" for k in args.tokens))
        result[name] = {str(k): [round(medians[k], 2), round(per_step[k], 2)] for k in args.tokens}
    print(json.dumps({"model": args.model, "dtype": args.dtype, "speed_up_and_tokens_a_step": result}))


if __name__ == "__main__":
    main()

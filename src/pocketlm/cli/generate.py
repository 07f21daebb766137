"""pocketlm generate: continue a prompt in the terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import configure_logging, note, print_json
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import InvalidRequest

if TYPE_CHECKING:
    from pocketlm.llm import Stream


@config_flags(EngineConfig)
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="bundled, a local folder or a Hugging Face Hub id.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Prompt and answer together, in tokens; 50 without --max-tokens.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="No end before this many new tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 = always the likeliest token; default 0.7.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k likeliest tokens; 0 = all; default 50.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this much probability.")
    ] = None,
    num_return_sequences: Annotated[int | None, typer.Option(help="Answers to one prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="Answer i is drawn with seed + i.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given many times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say how the model was loaded.")] = False,
    flags: dict[str, Any],
) -> None:
    """Continue a prompt. The text alone goes to stdout, everything else to stderr."""
    configure_logging(logging.INFO if verbose else logging.WARNING)
    [name, *_], engine_config, _ = load_config({"model": model and [model], **flags})

    from pocketlm.llm import LLM
    from pocketlm.server.protocol import GenerateRequest

    request = GenerateRequest.from_json(
        {
            "prompt": _stdin() if prompt == "-" else prompt,
            "max_length": max_length,
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_return_sequences": num_return_sequences,
            "seed": seed,
            "stop": stop or None,
        }
    )
    note(f"loading {name} ...")
    llm = LLM(name, **engine_config.model_dump())
    start = time.perf_counter()
    stream = llm.stream(request.prompt, request.params)
    if json:
        for _ in stream:
            pass
    else:
        _print(stream)
    seconds = time.perf_counter() - start
    answer = request.answer(name, stream.output, seconds)
    if json:
        print_json(answer)
    num_tokens = answer["usage"]["completion_tokens"]
    note(f"seed {answer['parameters']['seed']}, {num_tokens} tokens in {seconds:.2f} s")


def _stdin() -> str:
    """All of stdin, without the newline that `echo` and editors put at the end."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the prompt on stdin is not UTF-8: {error}", param="prompt") from None


def _print(stream: Stream) -> None:
    """Print the answers one after the other: the first as it comes, the others when it is their turn."""
    completions = stream.output.outputs
    waiting: dict[int, str] = defaultdict(str)  # text of the answers behind the one on the screen
    current = 0
    _begin(stream, current)
    for piece in stream:
        waiting[piece.index] += piece.text
        while current < len(completions):
            print(waiting.pop(current, ""), end="", flush=True)
            if completions[current].finish_reason is None:
                break
            print()
            current += 1
            if current < len(completions):
                _begin(stream, current)


def _begin(stream: Stream, index: int) -> None:
    outputs = stream.output.outputs
    if len(outputs) > 1:
        note(f"--- {index + 1} of {len(outputs)}, seed {outputs[index].seed}")
    print(stream.output.prompt, end="", flush=True)

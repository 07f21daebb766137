"""pocketlm verify: what a number format costs in accuracy, measured on a text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from pocketlm.cli.output import configure_logging, print_json, print_table
from pocketlm.config import load_config
from pocketlm.errors import ConfigError


def verify(
    model: Annotated[
        str | None, typer.Argument(help="bundled, a local folder or a Hugging Face Hub id.")
    ] = None,
    *,
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 file, documents separated by <|endoftext|> lines; default: a passage."),
    ] = None,
    dtype: Annotated[Literal["int8", "float32"], typer.Option(help="The format to compare.")] = "int8",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a number format costs in accuracy.

    It is compared with float32 on a text: perplexity, KL divergence, equal greedy tokens.
    """
    configure_logging(logging.WARNING)
    [name, *_], config, _ = load_config({"model": model and [model]})

    from pocketlm import kernels
    from pocketlm.accuracy import PASSAGE, compare, windows_of
    from pocketlm.loading import open_header, resolve_max_model_len, resolve_num_threads
    from pocketlm.models import read_checkpoint
    from pocketlm.text.tokenizer import Tokenizer

    checkpoint = read_checkpoint(open_header(name))
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    length, _ = resolve_max_model_len(config, checkpoint.spec)
    num_threads, _ = resolve_num_threads(config)
    content = PASSAGE if text is None else _read(text)
    reference, decoder = (
        kernels.create_decoder(checkpoint.spec, checkpoint.weights, dtype=name, num_threads=num_threads)
        for name in ("float32", dtype)
    )
    accuracy = compare(reference, decoder, windows_of(tokenizer, content, length))
    result = {
        "model": name,
        "text": "a passage of ours" if text is None else str(text),
        "isa": kernels.isa()[0],
        "dtype": dtype,
        "window": length,
        "num_tokens": accuracy.num_predicted,
        "perplexity_float32": round(accuracy.reference_perplexity, 4),
        "perplexity": round(accuracy.perplexity, 4),
        "perplexity_change_percent": round(
            100 * (accuracy.perplexity / accuracy.reference_perplexity - 1), 4
        ),
        "mean_kl_nats": round(accuracy.mean_kl, 6),
        "equal_greedy_tokens_percent": round(100 * accuracy.greedy_agreement, 2),
    }
    if json:
        print_json(result)
    else:
        print_table([(name.replace("_", " "), str(value)) for name, value in result.items()])


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"text: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"text: {path} is not UTF-8: {error}") from None
    if not text.strip():
        raise ConfigError(f"text: {path} is empty")
    return text

"""pocketlm verify: what a number format costs in accuracy, measured on a text."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketlm.cli.output import configure_logging, print_json, print_table
from pocketlm.config import load_config
from pocketlm.errors import ConfigError

if TYPE_CHECKING:
    from pocketlm.accuracy import Accuracy

NO_TRANSFORMERS = "not installed; pip install 'pocketlm[transformers]' compares with it too"


def verify(
    model: Annotated[
        str | None, typer.Argument(help="bundled, a local folder or a Hugging Face Hub id.")
    ] = None,
    *,
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 file, documents separated by <|endoftext|> lines; default: a passage."),
    ] = None,
    dtype: Annotated[
        Literal["int8", "int4", "bfloat16", "float32"], typer.Option(help="The format to compare.")
    ] = "int8",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a number format costs in accuracy.

    It is compared with float32 on a text: perplexity, KL divergence, equal greedy tokens. Where
    Transformers is installed, it is also compared with that, in float32.
    """
    configure_logging(logging.WARNING)
    [name, *_], config, _ = load_config({"model": model and [model]})

    from pocketlm import kernels, transformers_logits
    from pocketlm.accuracy import PASSAGE, compare_logits, logits_of, windows_of
    from pocketlm.hub import SHAPE_PREFIX
    from pocketlm.loading import (
        check_tokenizer,
        create_decoder,
        open_header,
        resolve_max_model_len,
        resolve_num_threads,
    )
    from pocketlm.models import read_checkpoint
    from pocketlm.text.tokenizer import Tokenizer

    header = open_header(name)
    checkpoint = read_checkpoint(header)
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    check_tokenizer(tokenizer, header)
    length, _ = resolve_max_model_len(config, checkpoint.spec)
    num_threads, _ = resolve_num_threads(config)
    content = PASSAGE if text is None else _read(text)
    windows = list(windows_of(tokenizer, content, length))
    decoder = partial(logits_of, create_decoder(checkpoint, tokenizer, dtype, num_threads))
    float32 = partial(logits_of, create_decoder(checkpoint, tokenizer, "float32", num_threads))
    accuracy = compare_logits(float32, decoder, windows)
    result = {
        "model": name,
        "text": "a passage of ours" if text is None else str(text),
        "isa": kernels.isa()[0],
        "dtype": dtype,
        "window": length,
        "num_tokens": accuracy.num_predicted,
        "perplexity": round(accuracy.perplexity, 4),
        "perplexity_float32": round(accuracy.reference_perplexity, 4),
        **_differences(accuracy),
    }
    if transformers_logits.is_installed() and not name.startswith(SHAPE_PREFIX):
        peer = transformers_logits.TransformersModel(checkpoint.folder, num_threads)
        accuracy = compare_logits(peer.logits_of, decoder, windows)
        result |= {
            "transformers": peer.version,
            "perplexity_transformers": round(accuracy.reference_perplexity, 4),
            **{f"{name}_from_transformers": value for name, value in _differences(accuracy).items()},
        }
    elif not transformers_logits.is_installed():
        result["transformers"] = NO_TRANSFORMERS
    if json:
        print_json(result)
    else:
        print_table([(name.replace("_", " "), str(value)) for name, value in result.items()])


def _differences(accuracy: Accuracy) -> dict[str, float]:
    """How far the decoder is from what it was compared with."""
    change = accuracy.perplexity / accuracy.reference_perplexity - 1
    return {
        "perplexity_change_percent": round(100 * change, 4),
        "mean_kl_nats": round(accuracy.mean_kl, 6),
        "equal_greedy_tokens_percent": round(100 * accuracy.greedy_agreement, 2),
    }


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

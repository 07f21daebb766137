"""The corpus -> cleaned and de-duplicated text, a tokenizer, and files of token ids.

    python -m training.prepare CORPUS DATA [--validation FILE] [--smoke]

CORPUS has one file for each source in sources.py: UTF-8 text, xz-compressed, its documents separated by
lines `<|endoftext|>`. DATA, a new folder, gets train.txt, validation.txt, tokenizer.json and what
token_files.py describes. The documents of FILE are the validation text; without it, one document in a
hundred is, chosen by a digest of its text. No long paragraph of theirs stays as one of the training text.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pocketlm.accuracy import DOCUMENT_SEPARATOR
from pocketlm.text.tokenizer import END_OF_TEXT
from training.errors import RecipeError, errors_reported
from training.recipe import FULL, SMOKE
from training.sources import SOURCES, Source
from training.token_files import Span, TokenIds, write

VALIDATION_ONE_IN = 100  # documents
SMOKE_CHARS = 60_000  # of each source, and of the validation text
MIN_DOCUMENT_CHARS = 200  # what is shorter after cleaning is a heading, not prose
MIN_REPEATED_CHARS = 80  # shorter paragraphs, like headings, may occur again
MIN_LETTERS = 0.6  # of the visible characters of a paragraph; below are tables, figures and code
FEWEST_CHARS_JUDGED = 20

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
ADMONITION = re.compile(r"^\[![A-Za-z ]+\]$\n?", re.MULTILINE)  # "[!NOTE]" above a note
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclass
class Text:
    """The documents of one source on both sides of the split."""

    source: Source
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, plain or .xz, or a RecipeError."""
    try:
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        text = content.decode()
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} must be UTF-8 text, xz-compressed if named .xz: {error}") from error
    documents = [document.strip() for document in DOCUMENT_SEPARATOR.split(text)]
    documents = [document for document in documents if document]
    if not documents:
        raise RecipeError(f"{path} has no text; give documents separated by lines {END_OF_TEXT}")
    return documents


def read_corpus(corpus: Path) -> list[tuple[Source, list[str]]]:
    """The documents of every source, in the order of SOURCES."""
    if not corpus.is_dir():
        raise RecipeError(f"the corpus {corpus} is not a folder; training/README.md says what it holds")
    found = {path.name for path in corpus.glob("*.xz")}
    if not found:
        raise RecipeError(f"the folder {corpus} has no *.txt.xz; training/README.md says what it holds")
    expected = {source.file_name for source in SOURCES}
    if found != expected:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        raise RecipeError(
            f"the files of {corpus} must be those of training/sources.py: missing {missing or 'none'}, "
            f"unknown {unknown or 'none'}; add the file, or change the table"
        )
    return [(source, read_documents(corpus / source.file_name)) for source in SOURCES]


def clean(document: str) -> str:
    """Composed characters, no control characters, markers of notes or paragraphs that are not prose."""
    text = unicodedata.normalize("NFC", document.replace("\r\n", "\n"))
    text = ADMONITION.sub("", CONTROL.sub("", text))
    paragraphs = (paragraph.strip("\n").rstrip() for paragraph in PARAGRAPH_BREAK.split(text))
    return "\n\n".join(paragraph for paragraph in paragraphs if is_prose(paragraph))


def is_prose(paragraph: str) -> bool:
    visible = "".join(paragraph.split())
    if len(visible) < FEWEST_CHARS_JUDGED:
        return bool(visible)
    return sum(char.isalpha() for char in visible) >= MIN_LETTERS * len(visible)


class Repeats:
    """Paragraphs met so far, whatever their case and spacing."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, document: str) -> str:
        """The document without the long paragraphs that were met before; those that remain now are."""
        return "\n\n".join(part for part in document.split("\n\n") if self._is_new(part))

    def _is_new(self, paragraph: str) -> bool:
        words = " ".join(paragraph.casefold().split())
        if len(words) < MIN_REPEATED_CHARS:
            return True
        digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
        is_new = digest not in self._digests
        self._digests.add(digest)
        return is_new


def is_validation(document: str) -> bool:
    """One document in VALIDATION_ONE_IN, the same ones whatever else is in the corpus."""
    digest = hashlib.blake2b(" ".join(document.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % VALIDATION_ONE_IN == 0


def split(corpus: Iterable[tuple[Source, list[str]]], validation: list[str] | None) -> list[Text]:
    """Cleaned, de-duplicated text for training, and validation documents as they are.

    `validation`: documents to keep out in place of those that the digest chooses.
    """
    kept_out = None if validation is None else {" ".join(document.split()) for document in validation}
    texts = []
    for source, documents in corpus:
        text = Text(source)
        for document in documents:
            words = " ".join(document.split())
            chosen = is_validation(document) if kept_out is None else words in kept_out
            (text.validation if chosen else text.train).append(document)
        texts.append(text)
    repeats = Repeats()
    for document in validation or [document for text in texts for document in text.validation]:
        repeats.add(clean(document))
    for text in texts:
        documents = [repeats.add(clean(document)) for document in text.train]
        text.train = [document for document in documents if len(document) >= MIN_DOCUMENT_CHARS]
        if not text.train:
            raise RecipeError(
                f"{text.source.file_name} has no document of {MIN_DOCUMENT_CHARS} characters left after "
                "cleaning; give longer ones"
            )
    return texts


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """GPT-2's kind of tokenizer: byte-level BPE, <|endoftext|> as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise RecipeError(
            f"the corpus gives a vocabulary of {found} tokens, and {vocab_size} are needed; give more text"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> TokenIds:
    """The ids of documents one after the other, <|endoftext|> before each of them. [T]"""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    parts = [[end_of_text, *encoding.ids] for encoding in tokenizer.encode_batch_fast(documents)]
    return np.concatenate([np.array(part, np.uint16) for part in parts])


def shortened(documents: list[str]) -> list[str]:
    """Whole documents while they fit in SMOKE_CHARS, and at least one."""
    kept: list[str] = []
    while len(kept) < len(documents) and sum(map(len, kept)) + len(documents[len(kept)]) <= SMOKE_CHARS:
        kept.append(documents[len(kept)])
    return kept or [documents[0][:SMOKE_CHARS]]


def prepare(corpus: Path, data: Path, validation: Path | None, is_smoke: bool) -> None:
    if data.exists():
        raise RecipeError(f"{data} exists already; give a new folder, or remove it")
    documents = read_corpus(corpus)
    held_out = None if validation is None else read_documents(validation)
    if is_smoke:
        documents = [(source, shortened(own)) for source, own in documents]
        held_out = held_out and shortened(held_out)
    texts = split(documents, held_out)
    held_out = held_out or [document for text in texts for document in text.validation]
    if not held_out:
        raise RecipeError(f"no document of {corpus} falls to validation; give --validation FILE")

    tokenizer = train_tokenizer(
        (document for text in texts for document in text.train), (SMOKE if is_smoke else FULL).vocab_size
    )
    data.mkdir(parents=True)
    tokenizer.save(str(data / "tokenizer.json"))
    write_text(data / "train.txt", [document for text in texts for document in text.train])
    write_text(data / "validation.txt", held_out)

    spans, parts, begin = [], [], 0
    for text in texts:
        ids = encode(tokenizer, text.train)
        spans.append(Span(text.source.repository, begin, begin + len(ids), text.source.weight))
        parts.append(ids)
        begin += len(ids)
    validation_bytes = sum(len(document.encode()) for document in held_out)
    write(
        data,
        train=np.concatenate(parts),
        validation=encode(tokenizer, held_out),
        validation_bytes=validation_bytes,
        vocab_size=tokenizer.get_vocab_size(),
        spans=spans,
    )
    report(texts, spans, len(held_out), validation_bytes)


def write_text(path: Path, documents: list[str]) -> None:
    path.write_text(f"\n{END_OF_TEXT}\n".join(documents) + "\n")


def report(texts: list[Text], spans: list[Span], num_held_out: int, validation_bytes: int) -> None:
    """What was prepared: for each source how much there is, and its share of what training draws."""
    total = sum(span.drawn for span in spans)
    print(f"{'source':42}{'documents':>10}{'MB':>8}{'tokens':>12}{'weight':>8}{'share':>8}")
    for text, span in zip(texts, spans, strict=True):
        megabytes = sum(len(document.encode()) for document in text.train) / 1e6
        print(
            f"{span.repository:42}{len(text.train):>10}{megabytes:>8.2f}{span.end - span.begin:>12,}"
            f"{span.weight:>8}{span.drawn / total:>8.1%}"
        )
    print(
        f"{spans[-1].end:,} training tokens; validation: {num_held_out} documents, {validation_bytes:,} bytes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--validation", type=Path, metavar="FILE", help="the text to keep out of training")
    parser.add_argument("--smoke", action="store_true", help="a slice of the corpus and a tiny vocabulary")
    args = parser.parse_args()
    with errors_reported():
        prepare(args.corpus, args.data, args.validation, args.smoke)


if __name__ == "__main__":
    main()

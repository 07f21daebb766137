from __future__ import annotations

import lzma
import random
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_corpus import document, sentences, write_corpus
from tokenizers import Tokenizer

from training import token_files
from training.errors import RecipeError
from training.prepare import clean, encode, is_validation, prepare, read_corpus, read_documents, split
from training.sources import SOURCES

RNG = random.Random(2)
PARAGRAPHS = [sentences(RNG, 40) for _ in range(12)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare(corpus, folder, None, is_smoke=True)
    return folder


def test_cleaning_keeps_prose_and_drops_what_is_not() -> None:
    table = "0.31  4,096  12.5%\n0.29  8,192  11.0%"
    given = f"Cafe\u0301 title\r\n\r\n[!NOTE]\nA note\x00 stays.  \n\n\n\n{table}\n\nThe end."
    assert clean(given) == "Caf\u00e9 title\n\nA note stays.\n\nThe end."


def test_a_paragraph_is_trained_on_once() -> None:
    one, two = (SOURCES[0], ["\n\n".join(PARAGRAPHS[:4])]), (SOURCES[1], ["\n\n".join(PARAGRAPHS[2:7])])
    shouting = (SOURCES[2], ["\n\n".join([PARAGRAPHS[0].upper(), *PARAGRAPHS[8:11]])])
    texts = split([one, two, shouting], validation=[])
    assert [text.train for text in texts] == [
        ["\n\n".join(PARAGRAPHS[:4])],
        ["\n\n".join(PARAGRAPHS[4:7])],
        ["\n\n".join(PARAGRAPHS[8:11])],
    ]


def test_nothing_of_the_validation_text_is_trained_on() -> None:
    held_out = "\n\n".join(PARAGRAPHS[:3])
    other = "\n\n".join(PARAGRAPHS[2:8])  # quotes a paragraph of it
    [text] = split([(SOURCES[0], [held_out.replace(" ", "\n"), other])], validation=[held_out])
    assert text.train == ["\n\n".join(PARAGRAPHS[3:8])]


def test_without_a_validation_text_one_document_in_a_hundred_is() -> None:
    documents = [document(RNG) for _ in range(3000)]
    chosen = [text for text in documents if is_validation(text)]
    assert 10 < len(chosen) < 60
    [text] = split([(SOURCES[0], documents)], validation=None)
    assert text.validation == chosen
    assert not set(text.train) & set(chosen)


def test_the_files_hold_the_text(data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    tokens = token_files.read(data, context=128)
    assert tokens.vocab_size == tokenizer.get_vocab_size() == 512
    train, validation = (read_documents(data / name) for name in ("train.txt", "validation.txt"))
    for ids, documents in ((tokens.train, train), (tokens.validation, validation)):
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        assert text == "".join(f"<|endoftext|>{document}" for document in documents)
    assert tokens.validation_bytes == sum(len(document.encode()) for document in validation)
    assert [span.begin for span in tokens.spans] == [0, *(span.end for span in tokens.spans[:-1])]
    assert tokens.spans[-1].end == len(tokens.train)


def test_the_same_corpus_gives_the_same_tokens(corpus: Path, data: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "again", None, is_smoke=True)
    assert token_files.read(tmp_path / "again", 128).digest == token_files.read(data, 128).digest


def test_a_given_validation_text_is_the_one_that_is_written(corpus: Path, tmp_path: Path) -> None:
    [(_, documents), *_] = read_corpus(corpus)
    (tmp_path / "held-out.txt").write_text("\n<|endoftext|>\n".join(documents[3:5]))
    prepare(corpus, tmp_path / "data", tmp_path / "held-out.txt", is_smoke=True)
    assert read_documents(tmp_path / "data" / "validation.txt") == documents[3:5]
    train = (tmp_path / "data" / "train.txt").read_text()
    for paragraph in "\n\n".join(documents[3:5]).split("\n\n"):
        assert paragraph not in train


def test_every_document_begins_with_the_end_of_text(data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    ids = encode(tokenizer, ["one", "two"]).tolist()
    assert ids == [0, *tokenizer.encode("one").ids, 0, *tokenizer.encode("two").ids]


def test_bad_input_is_named(corpus: Path, tmp_path: Path) -> None:
    def refused(folder: Path, data: str = "data", validation: Path | None = None) -> str:
        with pytest.raises(RecipeError) as caught:
            prepare(folder, tmp_path / data, validation, is_smoke=True)
        assert not (tmp_path / "data").exists()
        return str(caught.value)

    assert "is not a folder" in refused(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no *.txt.xz" in refused(empty)
    assert "exists already" in refused(corpus, data="empty")
    assert "No such file" in refused(corpus, validation=tmp_path / "nowhere.txt")
    (tmp_path / "blank.txt").write_text(" \n<|endoftext|>\n")
    assert "blank.txt has no text" in refused(corpus, validation=tmp_path / "blank.txt")

    changed = write_corpus(tmp_path / "changed")
    file = changed / SOURCES[0].file_name
    for content in (b"not compressed", lzma.compress(b"\xff")):
        file.write_bytes(content)
        assert f"{SOURCES[0].file_name} must be UTF-8 text, xz-compressed" in refused(changed)
    file.write_bytes(lzma.compress(b"Too short."))
    assert "no document of 200 characters left" in refused(changed)
    file.rename(changed / "some__other.txt.xz")
    assert f"missing ['{SOURCES[0].file_name}'], unknown ['some__other.txt.xz']" in refused(changed)


def test_the_command_ends_with_the_message_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.prepare", str(tmp_path / "nowhere"), str(tmp_path / "data")]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the corpus") and len(result.stderr.splitlines()) == 1

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from synthetic_corpus import write_corpus

from pocketlm import LLM, SamplingParams
from training.errors import RecipeError
from training.evaluate import as_words, likelihood, longest_overlap, read_texts
from training.prepare import read_documents

TEXT = "The scheduler binds a pod to a node. The kubelet on that node then starts its containers. "


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")


def test_bits_per_byte_are_the_log_probability_of_the_text(llm: LLM) -> None:
    documents = [TEXT, "caf\u00e9 \u2013 d\u00e9j\u00e0 vu"]
    found = likelihood(llm, documents)
    expected = 0.0
    for document in documents:
        ids = [0, *llm.model.tokenizer.encode(document)]
        [output] = llm.generate(ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
        assert output.prompt_logprobs is not None
        expected -= sum(
            entry[own].logprob for own, entry in zip(ids, output.prompt_logprobs, strict=True) if entry
        )
    assert found.num_bytes == sum(len(document.encode()) for document in documents)
    assert found.loss_sum == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / found.num_bytes)
    assert found.perplexity == pytest.approx(math.exp(expected / found.num_tokens))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_every_token_of_a_long_document_is_predicted_once(llm: LLM, extra: int) -> None:
    length = 2 * llm.model.max_model_len + extra
    tokenizer = llm.model.tokenizer
    document = tokenizer.decode(tokenizer.encode(TEXT * 100)[:length])
    found = likelihood(llm, [document])
    assert found.num_tokens == len(tokenizer.encode(document)) == length
    assert 0 < found.bits_per_byte < likelihood(llm, [TEXT]).bits_per_byte  # the rest repeats it


def test_the_longest_overlap_is_that_of_all_runs_of_words() -> None:
    rng = random.Random(5)
    for _ in range(200):
        words = as_words([" ".join(rng.choices("abc", k=60)), " ".join(rng.choices("abd", k=30))])
        own = rng.choices("abcd", k=20)
        runs = [" ".join(own[i:j]) for i in range(20) for j in range(i + 1, 21)]
        expected = max((len(run) for run in runs if f" {run} " in words), default=0)
        assert len(longest_overlap("\n".join(own), words)) == expected


def test_an_overlap_is_of_whole_words() -> None:
    words = as_words(["the cluster\nautoscaler adds nodes"])
    assert longest_overlap("a cluster autoscaler adds node", words) == "cluster autoscaler adds"
    assert longest_overlap("luster", words) == longest_overlap("", words) == ""


def test_texts_are_read_from_files_and_folders(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", documents_each=2)
    (tmp_path / "plain.txt").write_text("one\n<|endoftext|>\ntwo\n")
    texts = list(read_texts([corpus, tmp_path / "plain.txt"]))
    assert texts[-2:] == ["one", "two"]
    assert texts[:2] == read_documents(min(corpus.iterdir()))
    with pytest.raises(RecipeError, match=r"cannot read .*nowhere"):
        list(read_texts([tmp_path / "nowhere"]))

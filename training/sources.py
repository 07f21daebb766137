"""The texts the bundled model learns from: their origin, their licences, and how often each is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One repository whose documents are one file of the corpus."""

    repository: str
    commit: str
    licence: str
    weight: float  # how often a token of it is drawn, relative to a token of a source of weight 1

    @property
    def file_name(self) -> str:
        return f"{self.repository.replace('/', '__')}.txt.xz"


# The model is to continue sentences about containers, clusters and machine learning, so texts on those
# are read more often, introductions most of all, and language and currency proposals less.
SOURCES = (
    Source("kubernetes/enhancements", "64765b4b0238", "Apache-2.0", 1.0),
    Source("kubernetes/community", "24e7d8f5409c", "Apache-2.0", 1.0),
    Source("MicrosoftDocs/azure-aks-docs", "fb060abe6a8f", "CC-BY-4.0", 1.5),
    Source("open-telemetry/opentelemetry.io", "dd5997c8b9fa", "CC-BY-4.0", 1.0),
    Source("cncf/glossary", "ca1dc4034529", "CC-BY-4.0", 2.0),
    Source("kubeflow/website", "476e4c1080e0", "CC-BY-4.0", 2.0),
    Source("prometheus/docs", "c105550aad07", "Apache-2.0", 1.5),
    Source("huggingface/course", "16af5667532d", "Apache-2.0", 2.0),
    Source("huggingface/text-generation-inference", "db931fcf42da", "Apache-2.0", 2.0),
    Source("openvinotoolkit/model_server", "7e4df0c7ae34", "Apache-2.0", 2.0),
    Source("openvinotoolkit/openvino.genai", "da1db864d2bc", "Apache-2.0", 2.0),
    Source("mudler/LocalAI", "82c191afadf5", "MIT", 2.0),
    Source("vllm-project/guidellm", "ee7a77457ba6", "Apache-2.0", 2.0),
    Source("ollama/ollama", "fb3076099687", "MIT", 2.0),
    Source("donnemartin/system-design-primer", "ae9bbd7b02d9", "CC-BY-4.0", 2.0),
    Source("python/peps", "ba4deeb79695", "CC0-1.0 or public domain", 0.5),
    Source("ethereum/EIPs", "f767a1e8078e", "CC0-1.0", 0.5),
    Source("rust-lang/rfcs", "354518a8c902", "MIT or Apache-2.0", 0.5),
)


def attribution() -> str:
    """A Markdown table of the sources, as the model's card has it."""
    rows = [f"| {source.repository} | {source.commit} | {source.licence} |" for source in SOURCES]
    return "\n".join(["| repository | commit | licence |", "|---|---|---|", *rows])

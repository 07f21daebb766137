"""A model's name -> tokenizer and engine, with every "auto" resolved and its reason logged."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from pydantic import ByteSize

from pocketlm import hardware, kernels, known_answer, memory
from pocketlm.accuracy import PASSAGE, compare
from pocketlm.calibration import Array, Weights, matrix_inputs
from pocketlm.config import EngineConfig
from pocketlm.engine.engine import Engine
from pocketlm.errors import ConfigError, ModelLoadError
from pocketlm.fingerprint import content_digest, fingerprint
from pocketlm.hub import SHAPE_PREFIX, resolve
from pocketlm.kernels import Decoder, DecoderSpec
from pocketlm.known_answer import KnownAnswer
from pocketlm.memory import MemoryEstimate
from pocketlm.models import Checkpoint, CheckpointHeader, read_checkpoint, read_header
from pocketlm.packed_cache import Findings, PackedCache
from pocketlm.shapes import shape_header
from pocketlm.smoothing import SMOOTHED_DTYPES, smooth
from pocketlm.text.chat_template import ChatTemplate
from pocketlm.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_KL_DIVERGENCE = 0.01  # nats per token, about 1 % of perplexity, from float32 to what dtype=auto takes
KV_CACHE_SHARE = 0.2  # of the memory left when the weights are loaded


@dataclass(frozen=True)
class Setting:
    """A value that was chosen, and why: one line of the log, one row of `pocketlm doctor`."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}: {self.reason}"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate."""

    name: str
    model_type: str
    num_parameters: int
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    engine: Engine
    dtype: str
    dtype_reason: str
    max_model_len: int
    weights_bytes: int
    kv_cache_bytes: int
    fingerprint: str  # differs where the tokens of an equal request could
    known_answer: KnownAnswer | None
    settings: tuple[Setting, ...]
    load_s: float

    @property
    def memory_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes


def load_model(name: str, config: EngineConfig, available_bytes: int | None = None) -> LoadedModel:
    """Load a model: "bundled", a local folder, a Hugging Face Hub id or shape:NAME.

    ModelLoadError, ConfigError.

    `available_bytes` is what it may take in all, weights and KV cache; without it the KV cache takes a
    share of the memory that is free.
    """
    model = _load(name, config, available_bytes)
    memory.return_freed_memory()  # of the checkpoint, and of a number format that was not chosen
    log.info("model %s loaded in %.2f s: %d parameters", name, model.load_s, model.num_parameters)
    return model


def _load(name: str, config: EngineConfig, available_bytes: int | None) -> LoadedModel:
    start = time.perf_counter()
    header = open_header(name)
    tokenizer = Tokenizer.from_folder(header.folder)
    check_tokenizer(tokenizer, header)
    chat_template = ChatTemplate.from_folder(header.folder)

    isa, isa_reason = kernels.isa()
    num_threads, threads_reason = resolve_num_threads(config)
    max_model_len, length_reason = resolve_max_model_len(config, header.spec)
    cache = PackedCache(config.cache_dir, name, header)
    kept = _kept(cache, config, header, num_threads)
    if kept is not None:
        dtype, dtype_reason, decoder, findings = kept
    else:
        dtype, dtype_reason, decoder = resolve_dtype(config, read_checkpoint(header), tokenizer, num_threads)
        digest = content_digest(header.folder, header.file.paths)
        findings = Findings(digest, dtype_reason if config.dtype == "auto" else None, answers={})
    known = known_answer.record(name, decoder, tokenizer, max_model_len, findings.answers.get(isa))
    if known is None or known.failure is None:
        _keep(cache, decoder, findings, known, is_new=kept is None)

    weights_bytes = memory.weights_bytes(header, dtype)
    kv_cache_budget = None if available_bytes is None else available_bytes - weights_bytes
    num_blocks, cache_reason = resolve_num_blocks(config, header.spec, dtype, max_model_len, kv_cache_budget)
    kv_cache_bytes = num_blocks * kernels.kv_block_bytes(header.spec, dtype)
    how_it_runs = {"dtype": dtype, "isa": isa, "max_model_len": str(max_model_len)}
    if name.startswith(SHAPE_PREFIX):
        how_it_runs["weights"] = name  # there is no file that would tell

    engine = Engine(
        decoder,
        eos_token_ids=header.eos_token_ids,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        prefix_caching=config.prefix_caching,
        speculative_tokens=config.speculative_tokens,
    )
    settings = (
        Setting("isa", isa, isa_reason),
        Setting("num_threads", str(num_threads), threads_reason),
        Setting("dtype", dtype, dtype_reason),
        Setting("max_model_len", str(max_model_len), length_reason),
        Setting("kv_cache", f"{num_blocks} blocks ({readable(kv_cache_bytes)})", cache_reason),
    )
    for setting in settings:
        log.info("%s", setting)
    return LoadedModel(
        name=name,
        model_type=header.model_type,
        num_parameters=header.num_parameters,
        tokenizer=tokenizer,
        chat_template=chat_template,
        engine=engine,
        dtype=dtype,
        dtype_reason=dtype_reason,
        max_model_len=max_model_len,
        weights_bytes=weights_bytes,
        kv_cache_bytes=kv_cache_bytes,
        fingerprint=fingerprint(findings.content_digest, how_it_runs),
        known_answer=known,
        settings=settings,
        load_s=time.perf_counter() - start,
    )


def _kept(
    cache: PackedCache, config: EngineConfig, header: CheckpointHeader, num_threads: int
) -> tuple[str, str, Decoder, Findings] | None:
    """What an earlier start chose and packed, or None."""
    if kernels.isa()[0] == "reference":
        return None
    for dtype in reversed(candidate_dtypes(config)):
        found = cache.load(dtype)
        if found is None:
            continue
        weights, findings = found
        reason = "as configured" if config.dtype != "auto" else findings.auto_reason
        if reason is not None:
            decoder = kernels.create_packed_decoder(header.spec, weights, num_threads=num_threads)
            return dtype, reason, decoder, findings
    return None


def _keep(
    cache: PackedCache, decoder: Decoder, findings: Findings, known: KnownAnswer | None, *, is_new: bool
) -> None:
    """Keep for the next start what is new in this one."""
    weights, isa = kernels.packed_weights(decoder), kernels.isa()[0]
    found = known.token_ids if known is not None and known.token_ids is not None else []
    is_longer = len(found) > len(findings.answers.get(isa, []))
    if weights is not None and (is_new or is_longer):
        answers = {**findings.answers, isa: found} if is_longer else findings.answers
        cache.save(weights, replace(findings, answers=answers))


def estimate(name: str, config: EngineConfig, available_bytes: int) -> MemoryEstimate:
    """What `load_model` would take, from config.json and the headers of the weights. ModelLoadError."""
    header = open_header(name)
    dtypes = candidate_dtypes(config)
    max_model_len, _ = resolve_max_model_len(config, header.spec)
    weights_bytes = memory.weights_bytes(header, dtypes[0])
    block_bytes = kernels.kv_block_bytes(header.spec, dtypes[0])
    one_context = memory.context_bytes(header.spec, dtypes[0], max_model_len)
    enough = config.max_num_seqs * one_context
    if config.kv_cache_memory is not None:
        least = kv_cache_bytes = min(enough, int(config.kv_cache_memory) // block_bytes * block_bytes)
    else:
        least = one_context
        kv_cache_bytes = max(least, min(enough, available_bytes - weights_bytes))
    num_probe_tokens = min(header.spec.max_positions, len(PASSAGE))
    return MemoryEstimate(
        num_parameters=header.num_parameters,
        weights_bytes=weights_bytes,
        peak_bytes=memory.peak_bytes(header, dtypes, num_probe_tokens),
        kv_cache_bytes=kv_cache_bytes,
        least_kv_cache_bytes=least,
        max_model_len=max_model_len,
    )


def open_header(name: str) -> CheckpointHeader:
    """What is known of a model before its weights are read. ModelLoadError."""
    return shape_header(name) if name.startswith(SHAPE_PREFIX) else read_header(resolve(name))


def check_tokenizer(tokenizer: Tokenizer, checkpoint: CheckpointHeader) -> None:
    """Refuse the tokenizer of another model. (Some have a few tokens more than the model, never used.)"""
    largest_id = max(tokenizer.encode(PASSAGE), default=0)
    if largest_id >= checkpoint.spec.vocab_size:
        raise ModelLoadError(
            f"{checkpoint.folder}: the tokenizer gives plain English the token id {largest_id}, but the "
            f"model's vocab_size is {checkpoint.spec.vocab_size}; they do not belong together"
        )


def resolve_num_threads(config: EngineConfig) -> tuple[int, str]:
    if config.num_threads is not None:
        return config.num_threads, "as configured"
    return hardware.num_threads()


def candidate_dtypes(config: EngineConfig) -> tuple[str, ...]:
    """The number formats that are considered, the largest first."""
    if config.dtype != "auto":
        return (config.dtype,)
    return ("float32",) if kernels.isa()[0] == "reference" else ("float32", "bfloat16", "int8")


def resolve_dtype(
    config: EngineConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, num_threads: int
) -> tuple[str, str, Decoder]:
    """The number format of the weights, why, and the decoder packed in it: the smallest that is accurate."""
    largest, *smaller = candidate_dtypes(config)
    exact = create_decoder(checkpoint, tokenizer, largest, num_threads)
    if config.dtype != "auto":
        return largest, "as configured", exact
    if not smaller:
        return largest, "the NumPy reference gains nothing from int8", exact
    found = []
    for dtype in reversed(smaller):
        decoder = create_decoder(checkpoint, tokenizer, dtype, num_threads)
        kl = compare(exact, decoder, [_passage_ids(checkpoint, tokenizer)]).mean_kl
        found.append(f"of {dtype} from {largest} is {kl:.2g}")
        reason = f"KL divergence {', '.join(found)} on the probe, bound {MAX_KL_DIVERGENCE:g}"
        if kl <= MAX_KL_DIVERGENCE:  # a NaN, from logits that are not finite, is not
            return dtype, reason, decoder
        del decoder  # so that no more than two are in memory
    return largest, reason, exact


def create_decoder(checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: str, num_threads: int) -> Decoder:
    """The decoder of a checkpoint in a number format, its weights prepared for what that rounds."""
    from threadpoolctl import threadpool_limits

    spec = checkpoint.spec
    weights: Weights = checkpoint.weights
    calibration: dict[str, Array] = {}
    # NumPy's products here are short, and its BLAS knows no quota: on a busy machine its threads spend most
    # of their time waiting for each other.
    with threadpool_limits(1, user_api="blas"):
        if dtype in SMOOTHED_DTYPES:
            weights = smooth(spec, weights, _passage_ids(checkpoint, tokenizer))
        if dtype == "int4":
            calibration = matrix_inputs(spec, weights, _passage_ids(checkpoint, tokenizer))
        return kernels.create_decoder(
            spec, weights, dtype=dtype, num_threads=num_threads, calibration=calibration
        )


def _passage_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(PASSAGE)[: checkpoint.spec.max_positions]


def resolve_max_model_len(config: EngineConfig, spec: DecoderSpec) -> tuple[int, str]:
    context = spec.max_positions
    if config.max_model_len is None:
        return context, "the model's context window"
    if config.max_model_len > context:
        return context, f"the model's context window, less than the {config.max_model_len} configured"
    return config.max_model_len, "as configured"


def resolve_num_blocks(
    config: EngineConfig, spec: DecoderSpec, dtype: str, max_model_len: int, budget: int | None = None
) -> tuple[int, str]:
    """How many KV blocks to take: what the memory allows, but no more than all sequences can fill."""
    block_bytes = kernels.kv_block_bytes(spec, dtype)
    blocks_per_seq = -(-max_model_len // kernels.BLOCK_SIZE)
    if config.kv_cache_memory is not None:
        budget, reason = int(config.kv_cache_memory), "as configured"
    elif budget is not None:
        budget, reason = max(0, budget), "what the memory budget leaves beside the weights"
    else:
        available, where = hardware.available_memory()
        budget = int(KV_CACHE_SHARE * available)
        reason = f"{KV_CACHE_SHARE:.0%} of {readable(available)} {where}"
    if budget < blocks_per_seq * block_bytes:
        raise ConfigError(
            f"the KV cache may take {readable(budget)} ({reason}), but one context of {max_model_len} tokens "
            f"needs {readable(blocks_per_seq * block_bytes)}; raise kv_cache_memory or lower max_model_len"
        )
    enough = config.max_num_seqs * blocks_per_seq
    if enough * block_bytes <= budget:
        return enough, f"{config.max_num_seqs} sequences of {max_model_len} tokens need no more"
    return budget // block_bytes, reason


def readable(num_bytes: int) -> str:
    return ByteSize(num_bytes).human_readable(separator=" ")

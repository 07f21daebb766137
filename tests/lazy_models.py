"""A registry of fake models, of which only the first is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fake_decoder import MAX_POSITIONS, FakeDecoder
from served import fake_model

from pocketlm.config import EngineConfig
from pocketlm.loading import LoadedModel
from pocketlm.memory import MemoryEstimate
from pocketlm.registry import Registry

MIB = 1 << 20


@dataclass
class LazyModels:
    """Each takes 1 MiB, unless `sizes` says otherwise; `loads` has the name of each load so far."""

    sizes: dict[str, int] = field(default_factory=dict)
    before_load: Callable[[], object] = lambda: None  # called for all but the first, in the loading thread
    loads: list[str] = field(default_factory=list)

    def registry(self, *names: str, **settings: Any) -> Registry:
        registry = Registry(names, loader=self._load, estimator=self._estimate, **settings)
        registry.preload()
        return registry

    def _load(self, name: str, config: EngineConfig, available_bytes: int | None) -> LoadedModel:
        if self.loads:
            self.before_load()
        self.loads.append(name)
        model = fake_model(FakeDecoder())
        return replace(
            model, name=name, fingerprint=name, weights_bytes=self.sizes.get(name, MIB), kv_cache_bytes=0
        )

    def _estimate(self, name: str, config: EngineConfig, available_bytes: int) -> MemoryEstimate:
        size = self.sizes.get(name, MIB)
        return MemoryEstimate(1, size, size, 0, 0, MAX_POSITIONS)

"""A decoder whose forward passes wait until the test lets them go."""

from __future__ import annotations

import threading
from typing import Any

from fake_decoder import FakeDecoder


class Gate(FakeDecoder):
    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.entered = threading.Event()  # somebody waits at the gate, or did
        self._turn = threading.Condition()
        self._num_allowed = 0.0

    def let_through(self, num_steps: float) -> None:
        with self._turn:
            self._num_allowed += num_steps
            self._turn.notify_all()

    def open(self) -> None:
        self.let_through(float("inf"))

    def forward(self, inputs: Any, kv_cache: Any) -> Any:
        self.entered.set()
        with self._turn:
            assert self._turn.wait_for(lambda: self._num_allowed > 0, timeout=20)
            self._num_allowed -= 1
        return super().forward(inputs, kv_cache)

"""config.json and its kind: a field that is missing or wrong is a ModelLoadError that names it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pocketlm.errors import ModelLoadError

# Far above any real model; a number beyond these is a mistake that would fill the memory.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1000


class ConfigFile:
    """The fields of one JSON file. null counts as absent, as in most published configs."""

    def __init__(self, path: Path, fields: dict[str, Any] | None = None) -> None:
        """`fields` stands for the file where there is none; `path` is then a name for messages."""
        self.path = path
        self.fields = read_json_object(path) if fields is None else fields

    def size(self, name: str, default: int | None = None, *, largest: int = MAX_SIZE) -> int:
        """A positive integer; without a default it must be there."""
        value = self._get(name, default)
        if not _is_integer(value) or not 1 <= value <= largest:
            raise self.wrong(name, f"an integer from 1 to {largest}")
        return int(value)

    def positive(self, name: str, default: float) -> float:
        value = self._get(name, default)
        if not (_is_integer(value) or isinstance(value, float)) or not 0 < value < math.inf:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of them; () if the field is absent."""
        value = self._get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(_is_integer(token_id) for token_id in values):
            raise self.wrong(name, "a token id or a list of them")
        return tuple(values)

    def wrong(self, name: str, allowed: str) -> ModelLoadError:
        """The error for a field whose value is not one of those allowed."""
        shown = json.dumps(self.fields[name])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return ModelLoadError(f"{self.path}: {name} must be {allowed}, got {shown}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.fields.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelLoadError(f"{self.path} has no {name}")
        return default


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} must be a JSON object, got a {type(content).__name__}")
    return content


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

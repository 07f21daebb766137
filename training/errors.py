"""RecipeError: what was given, what is allowed, what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pocketlm.errors import PocketLMError


class RecipeError(Exception):
    """A folder, file or flag given to a step of the recipe is wrong."""


@contextmanager
def errors_reported() -> Iterator[None]:
    """Ends the process with the message of an error raised on purpose, and without a traceback."""
    try:
        yield
    except (RecipeError, PocketLMError) as error:
        sys.exit(f"error: {error}")

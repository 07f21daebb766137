"""What all tests run under."""

from __future__ import annotations

import os
import tempfile

# Tests, and the processes they start, keep packed weights where no user does.
_folder = tempfile.TemporaryDirectory(prefix="pocketlm-tests-")
os.environ["XDG_CACHE_HOME"] = _folder.name

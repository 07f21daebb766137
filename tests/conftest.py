"""What all tests run under."""

from __future__ import annotations

import os
import signal
import tempfile

# Tests, and the processes they start, keep packed weights where no user does.
_folder = tempfile.TemporaryDirectory(prefix="pocketlm-tests-")
os.environ["XDG_CACHE_HOME"] = _folder.name

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

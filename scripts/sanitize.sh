#!/usr/bin/env bash
# Build the core with AddressSanitizer + UBSan, then with ThreadSanitizer, and run the tests that drive it.
# Usage: scripts/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1

# The sanitizer's runtime must be loaded before Python, and with it the C++ library whose exceptions it watches.
runtime() { echo "$(${CXX:-c++} -print-file-name="$1") $(${CXX:-c++} -print-file-name=libstdc++.so)"; }

# Python itself never frees all it takes, so leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1

run() { # name, sanitizers, runtime library
  local venv=build/sanitize-$1
  [ -d "$venv" ] || "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet '.[test]' --config-settings=build-dir="build/sanitize-$1-objects" \
    --config-settings=cmake.define.POCKETLM_SANITIZE="$2" --config-settings=cmake.define.POCKETLM_WERROR=ON \
    --config-settings=cmake.define.POCKETLM_TESTS=ON \
    --config-settings=install.strip=false
  echo "== $2"
  env LD_PRELOAD="$(runtime "$3")" PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 \
    "$venv/bin/python" -m pytest -q -s -p no:cacheprovider tests/kernels tests/engine/test_invariance.py
}

run address address,undefined libasan.so
run thread thread libtsan.so

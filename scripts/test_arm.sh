#!/usr/bin/env bash
# Compile the kernels and their native tests for 64-bit ARM, and run them under an emulator: on a processor with
# the 8-bit dot product and on one without.
set -euo pipefail
cd "$(dirname "$0")/.."

for needed in cmake:cmake aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user; do
  if ! command -v "${needed%%:*}" >/dev/null; then
    echo "make test-arm needs ${needed%%:*}. On Debian and Ubuntu: apt install cmake g++-aarch64-linux-gnu qemu-user" >&2
    exit 1
  fi
done

cmake -S . -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
  -DCMAKE_DISABLE_FIND_PACKAGE_Python=ON -DPOCKETLM_TESTS=ON -DPOCKETLM_WERROR=ON >/dev/null
cmake --build build/arm --parallel "$(nproc)"

run() { # processor, the instruction sets it must find
  echo "== $1"
  qemu-aarch64 -cpu "$1" build/arm/test_kernels "${@:2}"
}
run max neon_dotprod neon portable
run cortex-a72 neon portable

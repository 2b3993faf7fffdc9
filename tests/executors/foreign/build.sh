#!/bin/sh
# Builds the shims; the committed ones come from ziglang 0.17.1 (pip install ziglang==0.17.1).
set -eu
cd "$(dirname "$0")"
for name in lodepng licence pii; do
  ${ZIG:-python3 -m ziglang} cc --target=wasm32-freestanding -std=c11 -O2 \
    -mbulk-memory -nostdlib -Wall -Wextra -Werror \
    -Wl,--no-entry -Wl,--import-memory -Wl,--export-memory -Wl,--strip-all -Wl,-z,stack-size=0 \
    -o "$name.wasm" "$name.c"
  chmod 644 "$name.wasm"
done

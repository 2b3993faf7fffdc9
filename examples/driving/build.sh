#!/bin/sh
# Builds the Wasm modules of this example, with the compiler and the packages of
# ../reading/build.sh. The committed modules come from clang 14.0.6 and
# wasi-libc 0.0~git20220510 (Debian 12).
#
#   build.sh [FOLDER]    default: modules/ beside this file
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/modules}
stb=${STB_INCLUDE:-/usr/include/stb}
mkdir -p "$out"
for name in glance plate recent outlook forecast project look fuse plates_whole traffic_whole \
  surround_whole; do
  # Stack first, so that an overflow traps.
  "${CLANG:-clang}" --target=wasm32-unknown-wasi -std=c11 -O3 \
    -msimd128 -mbulk-memory -mnontrapping-fptoint -mexec-model=reactor -nostartfiles \
    -Wall -Wextra -Werror -isystem "$stb" \
    -Wl,--no-entry -Wl,--stack-first -Wl,-z,stack-size=262144 -Wl,--strip-all \
    -o "$out/$name.wasm" "$here/guests/$name.c" -lm
  chmod 644 "$out/$name.wasm"
done

#!/bin/sh
# Build the image of this example: a static program, alone in it. Needs a C compiler.
set -eu
cd "$(dirname "$0")"
${CC:-cc} -O2 -static -s -Wall -Wextra -o edges edges.c
${PYTHON:-python3} pack.py edges edges.tar

#!/bin/sh
# Runs the proofs at their full sizes and writes the figures that they print to docs/proof.md.
set -eu
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
PLENUM_PROVE=1 "${GO:-go}" test -v -count=1 -timeout 80m ./internal/endtoend >"$log" 2>&1 || status=$?
if [ "$status" != 0 ]; then
	grep -v '^=== ' "$log" >&2
	exit "$status"
fi
{
	echo "# Proofs"
	echo
	echo "Written by \`make prove\` at $(git describe --tags --always --dirty 2>/dev/null || echo devel), on $(nproc) cores. Each line is printed by a test that fails if it is not so."
	echo
	sed -n 's/^ *\([a-z_]*_test\.go\):[0-9]*: proof: /- \1: /p' "$log" | sort
} >docs/proof.md
cat docs/proof.md

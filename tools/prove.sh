#!/bin/sh
# Runs the proofs at their full sizes and writes the figures that they print to docs/proof.md.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
commit=$(git describe --tags --always --dirty 2>/dev/null || echo devel) # before the report is written
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run appends what a command prints to the log; when it fails, shows that and ends.
run() {
	"$@" >>"$log" 2>&1 && return
	status=$?
	grep -v '^=== ' "$log" >&2
	exit "$status"
}

run env PLENUM_PROVE=1 "$go" test -v -count=1 -timeout 150m -skip '^TestBlueGreen$' ./internal/endtoend
run env PLENUM_PROVE=1 "$go" test -v -count=1 -timeout 180m -run '^TestBlueGreen$' ./internal/endtoend # it takes all of the machine
run env PLENUM_PROVE=1 "$go" test -v -count=1 -timeout 30m ./pkg/partman
run env PLENUM_PROVE=1 "$go" test -v -count=1 -timeout 30m -run '^TestKilledAtEachPoint$' ./pkg/bluegreen
run "$go" test -run '^$' -fuzz '^FuzzDecode$' -fuzztime 10m ./pkg/telemetry
{
	echo "# Proofs"
	echo
	echo "Written by \`make prove\` at $commit, on $(nproc) cores. Each line is printed by a test that fails if it is not so."
	echo
	{
		sed -n 's/^ *\([a-z_]*_test\.go\):[0-9]*: proof: /- \1: /p' "$log"
		sed -n 's/^fuzz: elapsed: \([0-9a-z]*\), execs: \([0-9]*\) .*/- fuzz_test.go: the decoder against encoding\/json for \1: \2 inputs, no difference/p' "$log" | tail -n 1
	} | sort
} >docs/proof.md
cat docs/proof.md

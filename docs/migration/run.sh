#!/bin/bash
# Runs the commands of docs/migration.md, the lines "    $ …", one after the other in one shell, on a PostgreSQL of its own, and writes
# the document anew with what they print. It needs bin/plenumctl (make build) and PostgreSQL's programs; it takes three minutes.
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
work=$(mktemp -d)
postgres=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
if [ "$(id -u)" = 0 ]; then chown postgres "$work"; fi
cleanup() {
	jobs -p | xargs -r kill 2>/dev/null || true
	as "$postgres/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
	rm -rf "$work"
}
trap cleanup EXIT
as "$postgres/initdb" -D "$work/data" -U app --auth=trust >/dev/null
as "$postgres/pg_ctl" -D "$work/data" -w -l "$work/postgres.log" \
	-o "-c listen_addresses='' -k $work -c shared_buffers=512MB -c max_wal_size=4GB" start >/dev/null
export PGHOST=$work PGUSER=app PGDATABASE=app PATH=$root/bin:$postgres:$PATH
createdb app
export PLENUM_DATABASE_URL="postgres:///app?host=$work&user=app" PLENUM_HTTP_LISTEN=127.0.0.1:0
cp ./*.sql "$work"
cd "$work"

in=$root/docs/migration.md output=0 status=0
while IFS= read -r line; do
	case $line in
	'    $ '*)
		output=1
		printf '%s\n' "$line"
		set +e
		(exit "$status")
		eval "${line#    \$ }" >out 2>&1 </dev/null
		status=$?
		set -e
		sed -E "s#$work/?##g; s/[[:space:]]+\$//; s/^./    &/" out
		;;
	'    '*) [ "$output" = 1 ] || printf '%s\n' "$line" ;;
	'') printf '\n' ;; # also within an output, which begins and ends with none
	*)
		output=0
		printf '%s\n' "$line"
		;;
	esac
done <"$in" >new
cat -s new >"$in"

#!/bin/sh
# Makes the secrets that compose.yaml reads, once: a file that exists is kept, so it can be run again.
# To change a password, delete its file and the URL beside it, run this, then follow README.md.
#
# The directory is 0700, which keeps other users of this machine out. The files are readable within it because
# compose mounts each with its owner and mode, and every container reads them as another user.
set -eu
umask 022
dir=$(dirname "$0")/secrets
mkdir -p "$dir"
chmod 700 "$dir"

# password FILE: 32 random hexadecimal digits, which need no escaping in a URL.
password() {
    [ -s "$dir/$1" ] || od -An -N16 -tx1 /dev/urandom | tr -d ' \n' > "$dir/$1"
}

# url FILE ROLE PASSWORD-FILE
url() {
    [ -s "$dir/$1" ] || printf 'postgres://%s:%s@postgres:5432/plenum' "$2" "$(cat "$dir/$3")" > "$dir/$1"
}

for name in postgres owner ingest sync mqtt grafana; do
    password "${name}_password"
done
url owner_url plenum_owner owner_password
url ingest_url plenum_ingest ingest_password
url sync_url plenum_sync sync_password

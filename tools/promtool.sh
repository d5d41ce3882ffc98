#!/bin/sh
# Unpacks promtool from Debian's package prometheus to the file named, without installing the package.
set -eu
target=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
fetch() { (cd "$dir" && apt-get download -q prometheus >/dev/null 2>&1); }
if ! fetch; then
	# A new machine has no package lists yet.
	if [ "$(id -u)" = 0 ]; then apt-get update -q >/dev/null; else sudo -n apt-get update -q >/dev/null || {
		echo "promtool is missing. Run this once, then make again: sudo apt-get update" >&2
		exit 1
	}; fi
	fetch
fi
mkdir -p "$(dirname "$target")"
dpkg-deb --fsys-tarfile "$dir"/prometheus_*.deb | tar -xO ./usr/bin/promtool >"$target.new"
chmod +x "$target.new"
mv "$target.new" "$target"

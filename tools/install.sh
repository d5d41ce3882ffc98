#!/bin/sh
# Installs the Debian packages that are missing of those named as arguments: postgresql, mosquitto,
# mosquitto-clients, compiler. No cluster is created and no service is started or enabled.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

missing=
for want in "$@"; do
	case $want in
	postgresql)
		[ -n "${PLENUM_PG_BIN:-}" ] || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || have initdb || missing="$missing postgresql" ;;
	mosquitto) have mosquitto || [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto" ;;
	mosquitto-clients) have mosquitto_pub || missing="$missing mosquitto-clients" ;;
	compiler) have gcc || missing="$missing gcc libc6-dev" ;;
	*) echo "install.sh: unknown argument $want" >&2 && exit 2 ;;
	esac
done
[ -n "$missing" ] || exit 0

if ! have apt-get; then
	echo "Missing:$missing. Install these by your system's means, then run make again." >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	if have sudo && sudo -n true 2>/dev/null; then
		exec sudo -n PLENUM_PG_BIN="${PLENUM_PG_BIN:-}" sh "$0" "$@"
	fi
	echo "Missing packages. Run this once, then make again:" >&2
	echo "    sudo sh $0 $*" >&2
	exit 1
fi

echo "Installing:$missing"
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
	mkdir -p /etc/postgresql-common
	echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
if [ ! -e /usr/sbin/policy-rc.d ]; then
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing
case " $missing " in *" mosquitto "*)
	! have systemctl || systemctl disable mosquitto >/dev/null 2>&1 || true ;;
esac

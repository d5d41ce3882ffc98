#!/bin/sh
# Installs the Debian packages that are missing of those named as arguments: postgresql, mosquitto,
# mosquitto-clients, compiler, libfaketime, pg_partman, pgbouncer, npm. No cluster is created and no service is started or enabled.
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
	npm) have npm || missing="$missing npm" ;;
	libfaketime) ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing="$missing libfaketime" ;;
	pg_partman)
		[ -n "${PLENUM_PG_BIN:-}" ] || ls /usr/share/postgresql/15/extension/pg_partman.control >/dev/null 2>&1 || missing="$missing postgresql-15-partman" ;;
	pgbouncer) have pgbouncer || [ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer" ;;
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
undo=
trap 'eval "$undo"' EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e /usr/sbin/policy-rc.d ]; then
	undo="rm -f /usr/sbin/policy-rc.d"
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
case " $missing " in *" postgresql "*)
	# The settings' package comes first, so that its createcluster.conf is its own. That includes the files of
	# createcluster.d. Ours is gone afterwards: who creates a cluster later finds the system's defaults.
	apt-get install -y -q --no-install-recommends postgresql-common
	settings=/etc/postgresql-common/createcluster
	if [ ! -d "$settings.d" ]; then
		undo="rmdir $settings.d 2>/dev/null || true; $undo"
		mkdir "$settings.d"
	fi
	undo="rm -f $settings.d/plenum.conf; $undo"
	echo 'create_main_cluster = false' >"$settings.d/plenum.conf"
	# As the server's package asks.
	if [ "$(pg_conftool "$settings.conf" show -bs create_main_cluster)" != off ]; then
		echo "$settings.conf would have a cluster created: let it include createcluster.d, or set create_main_cluster = false." >&2
		exit 1
	fi ;;
esac
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing
for service in mosquitto pgbouncer; do
	case " $missing " in *" $service "*)
		! have systemctl || systemctl disable "$service" >/dev/null 2>&1 || true ;;
	esac
done

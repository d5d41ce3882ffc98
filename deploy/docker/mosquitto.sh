#!/bin/sh
# Starts the broker with ingest's password from the secrets. The password file is on the broker's volume, so devices
# added to it stay: docker compose exec mosquitto mosquitto_passwd -b /mosquitto/data/plenum.passwd cmp-00001 PASSWORD
# and then docker compose kill -s HUP mosquitto, which makes the broker read it again.
set -eu
umask 077
data=/mosquitto/data
file=$data/plenum.passwd

touch "$file"
printf 'plenum-ingest:%s\n' "$(cat /run/secrets/mqtt_password)" > "$file.new"
mosquitto_passwd -U "$file.new" # replaces each password by its hash, so only the new line may be in the file
grep -v '^plenum-ingest:' "$file" >> "$file.new" || true
mv "$file.new" "$file"
ln -sfn "$file" /etc/mosquitto/plenum.passwd
# A copy, because the broker warns of a list of rights that others can read or own.
cp /etc/plenum/plenum.acl /etc/mosquitto/plenum.acl
chown mosquitto:mosquitto "$data" "$file" /etc/mosquitto/plenum.acl

exec mosquitto -c /mosquitto/config/mosquitto.conf

#!/bin/sh
# Runs roles.sql with the passwords of the secrets. PostgreSQL's image calls it when it makes the database; run it
# again after a change: docker compose exec postgres /docker-entrypoint-initdb.d/roles.sh
set -eu
# Through the environment: an argument would show in the list of processes.
PLENUM_OWNER_PASSWORD=$(cat /run/secrets/owner_password)
PLENUM_INGEST_PASSWORD=$(cat /run/secrets/ingest_password)
PLENUM_SYNC_PASSWORD=$(cat /run/secrets/sync_password)
export PLENUM_OWNER_PASSWORD PLENUM_INGEST_PASSWORD PLENUM_SYNC_PASSWORD
psql --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname "$POSTGRES_DB" --file /etc/plenum/roles.sql

-- +goose Up
-- Everything here creates new objects: no lock on anything that exists.

-- The filters that each MQTT client id may be subscribed to. MQTT 3.1.1 cannot list a session's
-- subscriptions, so what is no longer wanted is found here.
create table mqtt_session (
    client_id  text        primary key,
    filters    text[]      not null,
    updated_at timestamptz not null default now()
);

-- What became of every row received, since the table was made. A writer of a process has a line of
-- its own, which its transactions add to, so that writers do not wait for each other.
create table ingest_account (
    source      text        not null,
    writer      integer     not null,
    received    bigint      not null,
    stored      bigint      not null,
    duplicate   bigint      not null,
    quarantined bigint      not null,
    since       timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    primary key (source, writer),
    constraint ingest_account_balance check (received = stored + duplicate + quarantined)
) with (fillfactor = 50);

-- +goose Up
-- Everything here creates new objects: no lock on anything that exists.

-- Each nextval hands its caller a block of 5000 ids that nobody else touches.
create sequence telemetry_id_seq as bigint increment by 5000 cache 1;

-- 8-byte columns first: a row carries no alignment padding. No primary key: it would have to
-- contain last_modified and so would not make id unique.
create table telemetry (
    id            bigint      not null default nextval('telemetry_id_seq'),
    last_modified timestamptz not null default now(),
    recorded_at   timestamptz not null,
    seq           bigint,
    processed     boolean     not null default false,
    device_id     text        not null,
    kind          text        not null,
    payload       jsonb       not null
) partition by range (last_modified);
alter sequence telemetry_id_seq owned by telemetry.id;

-- No index mentions processed, not even in a predicate: marking stays HOT.
create index telemetry_id_idx on telemetry (id);
create index telemetry_last_modified_idx on telemetry using brin (last_modified);

create table telemetry_archive (like telemetry including defaults) partition by range (last_modified);
create index telemetry_archive_id_idx on telemetry_archive (id);
create index telemetry_archive_last_modified_idx on telemetry_archive using brin (last_modified);

create view telemetry_all as
    select id, last_modified, recorded_at, seq, processed, device_id, kind, payload from telemetry
    union all
    select id, last_modified, recorded_at, seq, processed, device_id, kind, payload from telemetry_archive;

-- The ledger: a line for each contiguous run of ids of one transaction.
create sequence telemetry_batch_id_seq as bigint;
create sequence telemetry_feed_position_seq as bigint;
create table telemetry_batch (
    batch_id      bigint      not null default nextval('telemetry_batch_id_seq'),
    first_id      bigint      not null,
    last_id       bigint      not null,
    created_at    timestamptz not null default now(),
    processed_at  timestamptz,
    feed_position bigint,
    set_aside_at  timestamptz,
    row_count     integer     not null,
    day           date        not null,
    attempts      integer     not null default 0,
    source        text        not null,
    detail        text,
    check (row_count between 1 and last_id - first_id + 1),
    check ((processed_at is null) = (feed_position is null))
) partition by range (day);
alter sequence telemetry_batch_id_seq owned by telemetry_batch.batch_id;
alter sequence telemetry_feed_position_seq owned by telemetry_batch.feed_position;
create index telemetry_batch_pending_idx on telemetry_batch (batch_id) where processed_at is null;
create index telemetry_batch_feed_position_idx on telemetry_batch (feed_position) where feed_position is not null;

create sequence telemetry_quarantine_id_seq as bigint;
create table telemetry_quarantine (
    id          bigint      not null default nextval('telemetry_quarantine_id_seq'),
    received_at timestamptz not null default now(),
    replayed_at timestamptz,
    code        text        not null,
    detail      text        not null,
    topic       text        not null,
    payload     bytea
) partition by range (received_at);
alter sequence telemetry_quarantine_id_seq owned by telemetry_quarantine.id;
create index telemetry_quarantine_id_idx on telemetry_quarantine (id);
create index telemetry_quarantine_received_at_idx on telemetry_quarantine using brin (received_at);

create table feed_consumer (
    name       text        primary key,
    position   bigint      not null,
    required   boolean     not null default false,
    updated_at timestamptz not null default now()
);

-- One row: the highest position whose rows have been dropped. A consumer behind it is told so.
create table feed_horizon (
    only_row   boolean     primary key default true check (only_row),
    position   bigint      not null,
    updated_at timestamptz not null default now()
);
insert into feed_horizon (position) values (0);

-- One row: the oldest schema version that a binary must know to run on this schema. A migration
-- that the release before cannot run on raises it.
create table schema_compatibility (
    only_row boolean primary key default true check (only_row),
    oldest   bigint  not null
);
insert into schema_compatibility (oldest) values (1);


-- +goose Up
-- Everything here creates new objects, but for feed_consumer: a handful of rows, locked for a moment (ACCESS EXCLUSIVE),
-- and not rewritten.

-- What a consumer that syncjob pushes to is at; the release before leaves these as they are.
alter table feed_consumer
    add column target        text,                       -- kafka or webhook; null: the consumer reads by itself
    add column delivering    bigint,                     -- where the page ends that is being delivered; null: none is
    add column attempts      integer not null default 0, -- deliveries of that page that the target refused
    add column failing_since timestamptz,                -- null while deliveries succeed
    add column detail        text;                       -- why the latest one did not

-- Pages that a target refused for good, as they were sent. Nothing deletes them but a person.
create table feed_dead_letter (
    id             bigint      generated always as identity primary key,
    consumer       text        not null,
    after_position bigint      not null, -- the page is what stands behind it …
    position       bigint      not null, -- … up to and with this
    row_count      integer     not null,
    attempts       integer     not null,
    created_at     timestamptz not null default now(),
    retry_at       timestamptz,          -- a person asked for one more delivery
    detail         text        not null,
    body           bytea       not null  -- the rows, as NDJSON
);
create index feed_dead_letter_consumer_idx on feed_dead_letter (consumer);

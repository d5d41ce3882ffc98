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

-- The feed for consumers inside the database. Both run with the owner's rights and with a search_path that holds this schema
-- and, behind everything, pg_temp: what a caller creates is never found. SQLSTATEs of their own:
--   PF410  rows behind the position have been dropped; the hint has the oldest position
--   PF409  a commit that goes backwards, past the head, or for a consumer that syncjob pushes to
--   PF503  rows are missing from a batch, or stand in it twice
--   22023  an argument is null or out of its range; 0A000 the transaction's isolation
--
-- Volatile: each statement in it sees what is committed when it begins, so that the horizon, which it reads last, is newer than
-- the rows. A snapshot of the whole transaction would be older than the tables that are gone: that is refused.
-- +goose StatementBegin
create function telemetry_feed(after bigint, max_rows integer)
    returns table ("position" bigint, id bigint, device_id text, kind text, seq bigint, recorded_at timestamptz, last_modified timestamptz, payload jsonb)
    language plpgsql volatile security definer
    set plan_cache_mode = force_custom_plan
    set enable_seqscan = off                -- the planner takes a range between columns for a ninth of the table
    set max_parallel_workers_per_gather = 0
    set work_mem = '32MB'                   -- a page of usual rows is sorted in memory
as $function$
#variable_conflict use_column
declare
    days     date[];
    of_day   date;
    spots    bigint[];
    firsts   bigint[];
    lasts    bigint[];
    counts   integer[];
    wanted   bigint;
    got      bigint;
    whole    boolean := true;
    i        integer;
    j        integer;
    day_from timestamptz;
    day_to   timestamptz;
    horizon  bigint;
begin
    if after is null or after < 0 then
        raise exception 'telemetry_feed: after is %, and must be a position from 0', coalesce(after::text, 'null') using errcode = '22023';
    elsif max_rows is null or max_rows < 1 or max_rows > 100000 then
        raise exception 'telemetry_feed: max_rows is %, and must be from 1 to 100000', coalesce(max_rows::text, 'null') using errcode = '22023';
    elsif current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'telemetry_feed: the transaction is %, whose snapshot may be older than what has been dropped', current_setting('transaction_isolation')
            using errcode = '0A000', hint = 'begin isolation level read committed';
    end if;
    -- Each line has a row at least, so max_rows lines are enough.
    select array_agg(b.feed_position order by b.feed_position), array_agg(b.first_id order by b.feed_position),
            array_agg(b.last_id order by b.feed_position), array_agg(b.row_count order by b.feed_position), array_agg(b.day order by b.feed_position)
        into spots, firsts, lasts, counts, days
        from (select l.*, sum(l.row_count) over (order by l.feed_position) - l.row_count as rows_before
              from (select feed_position, first_id, last_id, row_count, day from telemetry_batch
                    where feed_position > after order by feed_position limit max_rows) l) b
        where b.rows_before < max_rows;
    i := 1;
    while whole and i <= coalesce(cardinality(spots), 0) loop
        -- The lines of one day that follow each other; the day's bounds are constants in the plan.
        of_day := days[i];
        j := i;
        wanted := counts[i];
        while j < cardinality(spots) and days[j + 1] = of_day loop
            j := j + 1;
            wanted := wanted + counts[j];
        end loop;
        day_from := of_day::timestamp at time zone 'UTC';
        day_to := (of_day + 1)::timestamp at time zone 'UTC';
        return query
            select r.position, r.id, r.device_id, r.kind, r.seq, r.recorded_at, r.last_modified, r.payload
            from (select l.position, l.row_count, t.*, count(*) over (partition by l.position) as found
                  from unnest(spots[i:j], firsts[i:j], lasts[i:j], counts[i:j]) l (position, first_id, last_id, row_count)
                  cross join lateral (
                      select a.id, a.device_id, a.kind, a.seq, a.recorded_at, a.last_modified, a.payload from telemetry_all a
                      where a.id >= l.first_id and a.id <= l.last_id and a.last_modified >= day_from and a.last_modified < day_to
                      limit l.row_count + 1) t) r -- so that each line is looked up by itself, and not in a copy of the day
            where r.found = r.row_count
            order by r.position, r.id;
        get diagnostics got = row_count;
        whole := got = wanted;
        i := j + 1;
    end loop;
    select h.position into horizon from feed_horizon h;
    if after < horizon then
        raise exception 'rows behind position % have been dropped', after
            using errcode = 'PF410', hint = format('the oldest position to read from is %s', horizon);
    elsif not whole then
        raise exception 'a batch behind position % and up to % has rows missing, or twice', spots[1] - 1, spots[i - 1]
            using errcode = 'PF503', hint = 'plenumctl sync resolve; docs/operations.md, set-aside-batches';
    end if;
end
$function$;
-- +goose StatementEnd

-- To be called in the transaction that uses the rows: then each row is used once.
-- +goose StatementBegin
create function telemetry_feed_commit(consumer text, "position" bigint)
    returns void
    language plpgsql volatile security definer
as $function$
#variable_conflict use_column
declare
    stands bigint;
    pushed text;
    head   bigint;
begin
    if consumer is null or consumer !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$' then
        raise exception 'telemetry_feed_commit: consumer is %, and must be 1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or digit',
            coalesce(quote_literal(consumer), 'null') using errcode = '22023';
    elsif $2 is null or $2 < 0 then
        raise exception 'telemetry_feed_commit: position is %, and must be a position from 0', coalesce($2::text, 'null') using errcode = '22023';
    end if;
    select greatest(h.position, (select coalesce(max(b.feed_position), 0) from telemetry_batch b)) into head from feed_horizon h;
    -- Where it stands, it may stand: the head goes back where a person drops the ledger's lines.
    if $2 > head and not exists (select from feed_consumer c where c.name = consumer and c.position = $2) then
        raise exception 'consumer %: position % is past the feed''s head %', consumer, $2, head using errcode = 'PF409';
    end if;
    insert into feed_consumer as c (name, position) values (consumer, $2)
        on conflict (name) do update set position = excluded.position, updated_at = now() where c.position <= excluded.position and c.target is null;
    if not found then
        select c.position, c.target into stands, pushed from feed_consumer c where c.name = consumer;
        if pushed is not null then
            raise exception 'syncjob pushes to consumer % (%) and commits what arrived there', consumer, pushed
                using errcode = 'PF409', hint = 'commit under another name, or move it with plenumctl feed seek';
        end if;
        raise exception 'consumer % stands at %: a commit does not go back to %', consumer, stands, $2 using errcode = 'PF409';
    end if;
end
$function$;
-- +goose StatementEnd

-- +goose StatementBegin
do $$
declare
    f text;
begin
    foreach f in array array['telemetry_feed(bigint, integer)', 'telemetry_feed_commit(text, bigint)'] loop
        execute format('alter function %I.%s set search_path = %I, pg_temp', current_schema(), f, current_schema());
        execute format('revoke execute on function %I.%s from public', current_schema(), f);
    end loop;
end
$$;
-- +goose StatementEnd

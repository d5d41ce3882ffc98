-- What each role may do, granted by every migration to the roles of deploy/postgresql/roles.sql
-- that exist. Rows are reached through the parent tables, so partitions need no grant of their own.
do $$
begin
    perform pg_advisory_xact_lock(hashtext('plenum grants')); -- two grants on one table at once fail
    if exists (select from pg_roles where rolname = 'plenum_ingest') then
        grant select, insert on telemetry, telemetry_batch, telemetry_quarantine to plenum_ingest;
        grant select on telemetry_archive, telemetry_all, schema_compatibility, plenum_migration to plenum_ingest;
        grant select, insert, update on mqtt_session, ingest_account to plenum_ingest;
        grant usage on sequence telemetry_id_seq, telemetry_batch_id_seq, telemetry_quarantine_id_seq to plenum_ingest;
    end if;
    if exists (select from pg_roles where rolname = 'plenum_sync') then
        grant select on telemetry, telemetry_archive, telemetry_all, telemetry_batch, feed_consumer, feed_horizon,
            schema_compatibility, plenum_migration to plenum_sync;
        grant update (processed) on telemetry to plenum_sync;
        grant insert on telemetry_batch to plenum_sync;
        grant update (processed_at, feed_position, set_aside_at, attempts, detail) on telemetry_batch to plenum_sync;
        grant insert, update, delete on feed_consumer to plenum_sync;
        grant select, insert, update, delete on feed_dead_letter to plenum_sync;
        grant usage on sequence telemetry_batch_id_seq, telemetry_feed_position_seq to plenum_sync;
    end if;
    if exists (select from pg_roles where rolname = 'plenum_feed') then
        grant execute on function telemetry_feed(bigint, integer), telemetry_feed_commit(text, bigint) to plenum_feed;
    end if;
end
$$;

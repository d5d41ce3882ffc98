-- The three login roles of Plenum, the role of consumers inside the database, and their rights on the database and the schema. Can be run again at any time;
-- it takes away nothing. It needs psql, and a superuser or (PostgreSQL 15: any, later: one that may grant
-- pg_read_all_stats) a role with CREATEROLE that owns the database and the schema.
--
-- Order:
--   1. create database plenum;
--   2. psql -d plenum -f roles.sql
--   3. plenumctl migrate up, as plenum_owner: makes the tables and grants the others their rights on them. ingest does
--      the same at its start, with database.owner_url.
-- Where the tables were there first (of a single role, or from before these roles), run 2, hand the tables over with
-- `reassign owned by OLD to plenum_owner`, then 3, which grants to whichever of the roles exist.
--
-- Variables, each optional (psql -v name=value):
--   database         the database to change to; default: the one psql is connected to
--   schema           database.schema of the programs; default: public
--   owner_password, ingest_password, sync_password
--                    default: the environment's PLENUM_OWNER_PASSWORD and so on, which doesn't show in the list of
--                    processes. With neither, a new role has no password and an old one keeps its own: for servers that
--                    authenticate by certificate or peer. A SCRAM-SHA-256 verifier is taken too, in place of the password.

\set ON_ERROR_STOP on
\if :{?database}
  \connect :"database"
\endif
\if :{?schema}
\else
  \set schema public
\endif
\if :{?owner_password}
\else
  \getenv owner_password PLENUM_OWNER_PASSWORD
\endif
\if :{?ingest_password}
\else
  \getenv ingest_password PLENUM_INGEST_PASSWORD
\endif
\if :{?sync_password}
\else
  \getenv sync_password PLENUM_SYNC_PASSWORD
\endif

begin;
set local client_min_messages = warning;

-- plenum_owner owns every object: it migrates, and creates, moves and drops partitions.
-- plenum_ingest inserts readings, ledger lines and quarantine, and looks for duplicates. It updates and deletes no row.
-- plenum_feed logs in nowhere: `grant plenum_feed to your_role;` lets that role read the feed by SQL, and nothing else.
-- plenum_sync reads, updates of `telemetry` the one column `processed`, keeps the ledger and the feed's consumers.
-- Roles belong to the whole server, so a run for another database may be making or changing them at this moment. The
-- first comment's lock on its role, held until commit, lets one at a time go on.
do $$
declare
    role text;
begin
    foreach role in array array['plenum_owner', 'plenum_ingest', 'plenum_sync', 'plenum_feed'] loop
        if not exists (select from pg_roles where rolname = role) then
            begin
                execute format('create role %I %s', role, case role when 'plenum_feed' then 'nologin' else 'login' end);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end
$$;
comment on role plenum_owner is 'Plenum: owns its tables and partitions';
comment on role plenum_ingest is 'Plenum: ingest writes';
comment on role plenum_sync is 'Plenum: syncjob marks, consumers read';
comment on role plenum_feed is 'Plenum: consumers inside the database, telemetry_feed';

\if :{?owner_password}
  alter role plenum_owner password :'owner_password';
\endif
\if :{?ingest_password}
  alter role plenum_ingest password :'ingest_password';
\endif
\if :{?sync_password}
  alter role plenum_sync password :'sync_password';
\endif

-- When a lock can't be had, the partition manager names who holds it and what that session is doing. Of another
-- role's session, pg_stat_activity shows that to this role only. pg_monitor would give more than is needed.
select 'grant pg_read_all_stats to plenum_owner'
where not exists (
    select from pg_auth_members
    where roleid = 'pg_read_all_stats'::regrole and member = 'plenum_owner'::regrole
) \gexec

grant connect on database :"DBNAME" to plenum_owner, plenum_ingest, plenum_sync, plenum_feed;
create schema if not exists :"schema";
grant usage on schema :"schema" to plenum_owner, plenum_ingest, plenum_sync, plenum_feed;
-- Only plenum_owner creates. In public nobody else could since PostgreSQL 15, but for the database's owner.
grant create on schema :"schema" to plenum_owner;

commit;

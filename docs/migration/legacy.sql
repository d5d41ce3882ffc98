-- The example's old tables: eight days and 1,000,000 rows in the live one, each updated twice with nobody vacuuming, and an archive.
create table readings (
	id            bigserial primary key,
	last_modified timestamptz not null default now(),
	device_id     text not null,
	processed     boolean not null default false,
	payload       jsonb not null
) with (autovacuum_enabled = off);
create index readings_last_modified_idx on readings (last_modified);
create index readings_open_idx on readings (device_id) where not processed;
create table readings_archive (like readings including defaults including constraints);
alter table readings_archive alter column id drop default, add primary key (id);
create index readings_archive_last_modified_idx on readings_archive (last_modified);

insert into readings (last_modified, device_id, payload)
select now() - interval '8 days' * (1 - n / 1e6), 'cmp-' || n % 50, jsonb_build_object('motor_temp_c', n % 900 / 10.0, 'state', 'loaded')
  from generate_series(1, 1000000) n;
insert into readings_archive (id, last_modified, device_id, processed, payload)
select -n, now() - interval '8 days' - interval '22 days' * (n / 2e5), 'cmp-' || n % 50, true, '{"motor_temp_c": 70.1}' from generate_series(1, 200000) n;
update readings set processed = true;
update readings set payload = payload || '{"checked": true}';
analyze readings, readings_archive;

create view open_readings as select device_id, count(*) from readings where not processed group by device_id;
create materialized view readings_a_day as select date_trunc('day', last_modified) as day, count(*) from readings group by 1;

-- From now on whole days move from readings to readings_archive, which must not have them already. So the one day that both have rows of
-- becomes the archive's, and the archive's empty days go. Each takes ACCESS EXCLUSIVE on its table, for an instant.
set lock_timeout = '200ms';
do $$
declare
	live_from constant timestamptz := date_trunc('day', now(), 'UTC') - interval '7 days';
	leaf regclass;
	used boolean;
begin
	with moved as (delete from readings where last_modified < live_from returning *)
	insert into readings_archive select * from moved;
	for leaf in
		select inhrelid::regclass from pg_inherits join pg_class on oid = inhrelid
		 where inhparent = 'readings_archive'::regclass
		    or inhparent = 'readings'::regclass and (regexp_match(pg_get_expr(relpartbound, oid), 'TO \(''(.+)''\)'))[1]::timestamptz <= live_from
	loop
		execute format('select exists (select from %s)', leaf) into used;
		if not used then
			execute format('drop table %s', leaf);
		end if;
	end loop;
end
$$;

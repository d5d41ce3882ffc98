-- What the application asks all day, with values as they occur.
insert into readings (device_id, payload) values ('cmp-7', '{"motor_temp_c": 71.5}');
update readings set processed = true where id = any ('{4711,4712,815000,999999}');
select id, payload from readings where device_id = 'cmp-7' and not processed order by id limit 100;
select count(*) from readings where last_modified >= now() - interval '1 hour';

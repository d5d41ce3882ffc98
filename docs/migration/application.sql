\set first random(1, 1000000)
\set device random(0, 49)
insert into readings (device_id, payload) values ('cmp-' || :device, '{"motor_temp_c": 71.5}');
update readings set processed = true where id = any (array(select generate_series(:first, :first + 49)));
delete from readings where id = :first;

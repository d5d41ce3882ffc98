package bench

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// retirement is what one way of getting rid of a day took.
type retirement struct {
	way  string
	took time.Duration
	wal  int64 // bytes
	back int64 // bytes of disk that the database gave back
}

// The ways. The last two are of one run: VACUUM's figures come on top.
const (
	toArchive = "partman: to the archive"
	toNothing = "partman: detached and dropped"
	deleted   = "DELETE"
	vacuumed  = "VACUUM after it"
)

// flatSQL is the table without partitions: the day, and another one that stays.
const flatSQL = `
	create table flat (like telemetry including all);
	insert into flat select * from telemetry;
	insert into flat (id, last_modified, recorded_at, seq, device_id, payload)
	select id + (select max(id) from telemetry), last_modified + interval '1 day', recorded_at, seq, device_id, payload from telemetry;`

// retire gets rid of a day in each way, nothing else going on.
func (h *house) retire(s partitionSize, today time.Time) (all []retirement) {
	h.tb.Helper()
	k, day := ours(time.Millisecond), today.AddDate(0, 0, -daysBefore)
	fixture := h.database("fixture_retire")
	k.prepare(fixture, today)
	fixture.fill(day, day, s.retire)
	fixture.exec(flatSQL)
	fixture.exec("vacuum analyze")
	h.check(fixture.conn.Close(h.ctx))
	partman := func(o operation) func(*database) {
		return func(d *database) {
			_, err := k.change[o](h.ctx, d, today)
			h.check(err)
		}
	}
	for range s.repetitions {
		all = append(all, h.retireBy(map[string]func(*database){toArchive: partman(archive)}, toArchive)...)
		all = append(all, h.retireBy(map[string]func(*database){toNothing: partman(drop)}, toNothing)...)
		all = append(all, h.retireBy(map[string]func(*database){
			deleted: func(d *database) {
				d.exec(fmt.Sprintf("delete from flat where last_modified >= '%s' and last_modified < '%s'", dayOf(day), dayOf(day.AddDate(0, 0, 1))))
			},
			vacuumed: func(d *database) { d.exec("vacuum flat") },
		}, deleted, vacuumed)...)
	}
	return all
}

// retireBy does the steps on a fresh copy of the fixture and measures each.
func (h *house) retireBy(steps map[string]func(*database), order ...string) (all []retirement) {
	h.tb.Helper()
	h.check(h.postgres.CreateDatabase(h.ctx, "retire", "fixture_retire"))
	d := h.open("retire")
	for _, way := range order {
		r := retirement{way: way, wal: -d.wal(), back: d.size()}
		begin := time.Now()
		steps[way](d)
		r.took = time.Since(begin)
		r.wal += d.wal()
		r.back -= d.size()
		all = append(all, r)
	}
	d.drop()
	return all
}

// size is the database's on disk, in bytes.
func (d *database) size() (bytes int64) {
	d.h.tb.Helper()
	d.h.check(d.conn.QueryRow(d.h.ctx, "select pg_database_size(current_database())").Scan(&bytes))
	return bytes
}

// open connects to a database that is there.
func (h *house) open(name string) *database {
	h.tb.Helper()
	d := &database{h: h, name: name, url: h.postgres.URL(name)}
	var err error
	d.conn, err = pgx.Connect(h.ctx, d.url)
	h.check(err)
	return d
}

package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// A FeedRow is one processed row as a consumer sees it.
type FeedRow struct {
	ID           int64
	DeviceID     string
	Kind         string
	Seq          *int64 // nil where the device sent none
	RecordedAt   time.Time
	LastModified time.Time
	Payload      []byte // a JSON object, as jsonb prints it
}

// An IncompleteError is a batch of which fewer or more rows can be read than it counts.
type IncompleteError struct {
	Position, BatchID int64
	Found, Want       int
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("batch %d at position %d has %d rows, the ledger counts %d", e.BatchID, e.Position, e.Found, e.Want)
}

// rangeRows is how many ids a run has that a statement of its own reads; the ids of shorter ones share one statement a day.
const rangeRows = 256

const (
	feedColumns = `select id, device_id, kind, seq, recorded_at, last_modified, payload::text from telemetry_all`
	feedRun     = feedColumns + ` where id >= $1 and id <= $2 and last_modified >= $3 and last_modified < $4`
	feedIDs     = feedColumns + ` where id = any($1) and last_modified >= $2 and last_modified < $3`
)

// FeedRows returns the rows of lines, line by line and by id within a line. A line whose rows are not all
// there is an *IncompleteError.
//
// Ingest draws ids in blocks, so many lines are few runs of ids: each run is a range of one day's id index, and all
// are asked for in one round trip. A day may have been moved to the archive since the lines were read: telemetry_all has
// it in either place.
func FeedRows(ctx context.Context, db Querier, lines []Line) ([]FeedRow, error) {
	byDay := map[time.Time][]Line{}
	for _, l := range lines {
		byDay[l.Day] = append(byDay[l.Day], l)
	}
	found, err := feedDays(ctx, db, byDay)
	if err != nil {
		return nil, err
	}
	all := make([]FeedRow, 0, countRows(lines))
	for _, l := range lines {
		own := between(found[l.Day], l.FirstID, l.LastID)
		if len(own) != l.Rows {
			return nil, &IncompleteError{l.Position, l.BatchID, len(own), l.Rows}
		}
		all = append(all, own...)
	}
	return all, nil
}

func countRows(lines []Line) (n int) {
	for i := range lines {
		n += lines[i].Rows
	}
	return n
}

// feedDays reads each day's rows, ordered by id.
func feedDays(ctx context.Context, db Querier, byDay map[time.Time][]Line) (map[time.Time][]FeedRow, error) {
	var batch pgx.Batch
	found := make(map[time.Time][]FeedRow, len(byDay))
	decoder := rowDecoder{names: map[string]string{}}
	for day, lines := range byDay {
		found[day] = make([]FeedRow, 0, countRows(lines))
		queueDay(&batch, lines, func(rows pgx.Rows) (err error) {
			found[day], err = decoder.appendRows(found[day], rows)
			return err
		})
	}
	if err := db.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("read rows of %d days: %w", len(byDay), err)
	}
	byID := func(a, b FeedRow) int { return cmp.Compare(a.ID, b.ID) }
	for day, rows := range found {
		if !slices.IsSortedFunc(rows, byID) {
			slices.SortFunc(found[day], byID)
		}
	}
	return found, nil
}

func queueDay(batch *pgx.Batch, lines []Line, read func(pgx.Rows) error) {
	var ids []int64
	from, to := lines[0].day()
	for _, r := range runs(lines) {
		if r.LastID-r.FirstID+1 >= rangeRows {
			batch.Queue(feedRun, r.FirstID, r.LastID, from, to).Query(read)
		} else {
			ids = r.appendIDs(ids)
		}
	}
	if len(ids) > 0 {
		batch.Queue(feedIDs, ids, from, to).Query(read)
	}
}

// runs joins lines whose ids follow each other, ordered by id.
func runs(lines []Line) []Line {
	sorted := slices.SortedFunc(slices.Values(lines), func(a, b Line) int { return cmp.Compare(a.FirstID, b.FirstID) })
	out := sorted[:1]
	for _, l := range sorted[1:] {
		if last := &out[len(out)-1]; l.FirstID <= last.LastID+1 { // less only where somebody has written lines by hand
			last.LastID = max(last.LastID, l.LastID)
		} else {
			out = append(out, l)
		}
	}
	return out
}

// between returns the rows with first ≤ id ≤ last of rows sorted by id.
func between(rows []FeedRow, first, last int64) []FeedRow {
	byID := func(r FeedRow, id int64) int { return cmp.Compare(r.ID, id) }
	i, _ := slices.BinarySearchFunc(rows, first, byID)
	j, _ := slices.BinarySearchFunc(rows, last+1, byID)
	return rows[i:j]
}

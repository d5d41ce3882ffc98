package endtoend

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// feedRow is a row as the feed gives it.
type feedRow struct {
	ID           int64           `json:"id"`
	DeviceID     string          `json:"device_id"`
	Kind         string          `json:"kind"`
	Seq          *int64          `json:"seq"`
	RecordedAt   time.Time       `json:"recorded_at"`
	LastModified time.Time       `json:"last_modified"`
	Payload      json.RawMessage `json:"payload"`
}

// reader consumes the feed and keeps what it got.
type reader struct {
	t        *testing.T
	from     *process
	name     string
	rows     []feedRow
	position int64
}

// readOnce reads, keeps and commits one page.
func (r *reader) readOnce() {
	r.t.Helper()
	code, body, header := r.from.get("/api/v1/feed/" + r.name + "?limit=1000&wait=1s&from=earliest")
	if code != http.StatusOK {
		r.t.Fatalf("feed answers %d: %s", code, body)
	}
	position, err := strconv.ParseInt(header.Get("Plenum-Position"), 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	if position < r.position || (position == r.position) != (body == "") {
		r.t.Fatalf("position went from %d to %d with %d bytes", r.position, position, len(body))
	}
	for d := json.NewDecoder(strings.NewReader(body)); d.More(); {
		var row feedRow
		if err := d.Decode(&row); err != nil {
			r.t.Fatal(err)
		}
		r.rows = append(r.rows, row)
	}
	r.position = position
	resp, err := http.Post(r.from.url("/api/v1/feed/"+r.name+"/commit"), "application/json", strings.NewReader(fmt.Sprintf(`{"position":%d}`, position)))
	if err != nil {
		r.t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("commit of %d answers %d", position, resp.StatusCode)
	}
}

// readUntil reads until n rows have come.
func (r *reader) readUntil(n int) {
	r.t.Helper()
	devtest.Eventually(r.t, func() error {
		r.readOnce()
		if len(r.rows) < n {
			return fmt.Errorf("the feed has given %d rows of %d", len(r.rows), n)
		}
		return nil
	})
}

// once checks that no id and no identity came twice.
func (r *reader) once() {
	r.t.Helper()
	ids, identities := map[int64]bool{}, map[string]bool{}
	for _, row := range r.rows {
		seq := int64(-1)
		if row.Seq != nil {
			seq = *row.Seq
		}
		identity := fmt.Sprint(row.DeviceID, " ", row.Kind, " ", row.RecordedAt, " ", seq)
		if ids[row.ID] || identities[identity] {
			r.t.Fatalf("row %d (%s) came twice", row.ID, identity)
		}
		ids[row.ID], identities[identity] = true, true
	}
}

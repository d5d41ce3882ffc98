package store

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// rowDecoder makes FeedRows of what PostgreSQL sent. A consumer that catches up reads millions of rows: names that come again
// are one string, and payloads and sequence numbers share their allocations.
type rowDecoder struct {
	names   map[string]string
	payload []byte
	seqs    []int64
}

const (
	slabBytes = 64 << 10
	slabSeqs  = 1024
	maxNames  = 100_000
)

func (d *rowDecoder) appendRows(out []FeedRow, rows pgx.Rows) ([]FeedRow, error) {
	binaryFormat := true // not so where the connection uses the simple protocol
	for rows.Next() {
		fields := rows.FieldDescriptions()
		for _, i := range []int{0, 3, 4, 5} {
			binaryFormat = binaryFormat && fields[i].Format == pgtype.BinaryFormatCode
		}
		var r FeedRow
		if !binaryFormat || !d.decode(&r, rows.RawValues()) {
			if err := rows.Scan(&r.ID, &r.DeviceID, &r.Kind, &r.Seq, &r.RecordedAt, &r.LastModified, &r.Payload); err != nil {
				return out, err
			}
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// decode returns false for what it leaves to Scan: nothing that telemetry holds, but infinite times.
func (d *rowDecoder) decode(r *FeedRow, raw [][]byte) bool {
	recorded, ok1 := decodeTime(raw[4])
	modified, ok2 := decodeTime(raw[5])
	if !ok1 || !ok2 || len(raw[0]) != 8 || (raw[3] != nil && len(raw[3]) != 8) {
		return false
	}
	*r = FeedRow{ID: int64(binary.BigEndian.Uint64(raw[0])), RecordedAt: recorded, LastModified: modified}
	r.DeviceID, r.Kind = d.name(raw[1]), d.name(raw[2])
	if raw[3] != nil {
		if len(d.seqs) == cap(d.seqs) {
			d.seqs = make([]int64, 0, slabSeqs)
		}
		d.seqs = append(d.seqs, int64(binary.BigEndian.Uint64(raw[3])))
		r.Seq = &d.seqs[len(d.seqs)-1]
	}
	if len(d.payload)+len(raw[6]) > cap(d.payload) {
		d.payload = make([]byte, 0, max(slabBytes, len(raw[6])))
	}
	start := len(d.payload)
	d.payload = append(d.payload, raw[6]...)
	r.Payload = d.payload[start:len(d.payload):len(d.payload)]
	return true
}

func (d *rowDecoder) name(raw []byte) string {
	if s, known := d.names[string(raw)]; known {
		return s
	}
	s := string(raw)
	if len(d.names) < maxNames {
		d.names[s] = s
	}
	return s
}

// decodeTime decodes a finite timestamptz: microseconds since 2000.
func decodeTime(raw []byte) (time.Time, bool) {
	if len(raw) != 8 {
		return time.Time{}, false
	}
	const epoch = 946_684_800_000_000 // 2000 in microseconds since 1970
	n := int64(binary.BigEndian.Uint64(raw))
	if n == math.MinInt64 || n > math.MaxInt64-epoch {
		return time.Time{}, false
	}
	return time.UnixMicro(n + epoch).UTC(), true
}

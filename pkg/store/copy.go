package store

import (
	"encoding/binary"
	"time"

	"plenum/pkg/telemetry"
)

const copyTelemetry = `copy telemetry (id, recorded_at, seq, device_id, kind, payload) from stdin (format binary)`

// postgresEpoch is what timestamptz counts from, in Unix microseconds.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// appendCopy appends readings in PostgreSQL's binary COPY format, their ids drawn from runs in order. It is
// written out by hand because it runs once a row (see https://www.postgresql.org/docs/15/sql-copy.html,
// "Binary Format").
func appendCopy(buf []byte, readings []telemetry.Reading, runs []run) []byte {
	buf = append(buf, "PGCOPY\n\xff\r\n\x00"...)
	buf = append(buf, 0, 0, 0, 0, 0, 0, 0, 0)
	next, left := runs[0].first, runs[0].n
	for i := range readings {
		if left == 0 {
			runs = runs[1:]
			next, left = runs[0].first, runs[0].n
		}
		buf = appendRow(buf, &readings[i], next)
		next, left = next+1, left-1
	}
	return append(buf, 0xff, 0xff)
}

func appendRow(buf []byte, r *telemetry.Reading, id int64) []byte {
	be := binary.BigEndian
	buf = be.AppendUint16(buf, 6)
	buf = be.AppendUint64(be.AppendUint32(buf, 8), uint64(id))
	buf = be.AppendUint64(be.AppendUint32(buf, 8), uint64(r.RecordedAt.UnixMicro()-postgresEpoch))
	if r.Seq == telemetry.NoSeq {
		buf = append(buf, 0xff, 0xff, 0xff, 0xff)
	} else {
		buf = be.AppendUint64(be.AppendUint32(buf, 8), uint64(r.Seq))
	}
	buf = append(be.AppendUint32(buf, uint32(len(r.DeviceID))), r.DeviceID...)
	buf = append(be.AppendUint32(buf, uint32(len(r.Kind))), r.Kind...)
	buf = append(be.AppendUint32(buf, uint32(len(r.Metrics)+1)), 1) // jsonb's version number
	return append(buf, r.Metrics...)
}

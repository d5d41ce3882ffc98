package feed

import (
	"encoding/json"
	"strconv"
	"time"

	"plenum/pkg/store"
)

// AppendRow appends the row as a line of NDJSON. The payload is as PostgreSQL printed it: numbers keep every digit.
func AppendRow(buf []byte, r *store.FeedRow) []byte {
	buf = strconv.AppendInt(append(buf, `{"id":`...), r.ID, 10)
	buf = appendString(append(buf, `,"device_id":`...), r.DeviceID)
	buf = appendString(append(buf, `,"kind":`...), r.Kind)
	buf = append(buf, `,"seq":`...)
	if r.Seq == nil {
		buf = append(buf, "null"...)
	} else {
		buf = strconv.AppendInt(buf, *r.Seq, 10)
	}
	buf = r.RecordedAt.UTC().AppendFormat(append(buf, `,"recorded_at":"`...), time.RFC3339Nano)
	buf = r.LastModified.UTC().AppendFormat(append(buf, `","last_modified":"`...), time.RFC3339Nano)
	buf = append(append(buf, `","payload":`...), r.Payload...)
	return append(buf, "}\n"...)
}

func appendString(buf []byte, s string) []byte {
	if isPlain(s) {
		return append(append(append(buf, '"'), s...), '"')
	}
	quoted, err := json.Marshal(s)
	if err != nil { // no string makes Marshal fail
		return append(buf, `""`...)
	}
	return append(buf, quoted...)
}

// isPlain says that Marshal would change nothing, which holds for nearly every name.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

package endtoend

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestReplay has simulate publish a CSV file of a compressor, and finds it again in the feed: every row, every
// number with every digit. PLENUM_REAL_CSV names a file of real signals; without it the rows are generated.
func TestReplay(t *testing.T) {
	t.Parallel()
	file := os.Getenv("PLENUM_REAL_CSV")
	if file == "" {
		file = generatedCSV(t)
	}
	want := readCSV(t, file)
	s := newSystem(t)
	s.ingest().awaitReady()
	p := s.simulate("--file", file)
	p.wait()
	r := &reader{t: t, from: s.syncjob(), name: "test"}
	r.readUntil(len(want))
	r.once()
	if len(r.rows) != len(want) {
		t.Fatalf("%d rows came of %d", len(r.rows), len(want))
	}
	for _, row := range r.rows {
		w, ok := want[*row.Seq]
		if !ok {
			t.Fatalf("seq %d is not in the file", *row.Seq)
		}
		var payload map[string]json.Number
		d := json.NewDecoder(strings.NewReader(string(row.Payload)))
		if err := d.Decode(&payload); err != nil {
			t.Fatal(err)
		}
		if !row.RecordedAt.Equal(w.at) || !maps.Equal(payload, w.values) {
			t.Fatalf("seq %d came as %s %v, the file has %s %v", *row.Seq, row.RecordedAt, payload, w.at, w.values)
		}
	}
	figure(t, "replay: %d rows of %d signals come out of the feed equal to the file, digit by digit", len(want), len(want[r.rows[0].sequence()].values))
}

func (r feedRow) sequence() int64 { return *r.Seq }

// csvRow is one row of the file, its numbers as they are written there.
type csvRow struct {
	at     time.Time
	values map[string]json.Number
}

// readCSV reads the file with no code of Plenum's.
func readCSV(t *testing.T, file string) map[int64]csvRow {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	records, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	rows := map[int64]csvRow{}
	for _, record := range records[1:] {
		seq, err := strconv.ParseInt(record[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.DateTime, record[1])
		if err != nil {
			t.Fatal(err)
		}
		row := csvRow{at, map[string]json.Number{}}
		for i, value := range record[2:] {
			row.values[records[0][i+2]] = json.Number(value)
		}
		rows[seq] = row
	}
	return rows
}

// generatedCSV writes 1,000 rows in the shape of the real file.
func generatedCSV(t *testing.T) string {
	t.Helper()
	signals := []string{"TP2", "TP3", "H1", "Oil_temperature", "Motor_current", "COMP"}
	var b strings.Builder
	fmt.Fprintln(&b, strings.Join(slices.Concat([]string{"Unnamed: 0", "timestamp"}, signals), ","))
	at := time.Date(2020, 2, 1, 0, 0, 0, 0, time.UTC)
	for i := range 1000 {
		fmt.Fprintf(&b, "%d,%s", 10*i, at.Add(time.Duration(10*i)*time.Second).Format(time.DateTime))
		for k := range signals {
			fmt.Fprintf(&b, ",%s", strconv.FormatFloat(float64((i*7919+k*104729)%1000)/30-1, 'f', -1, 64))
		}
		fmt.Fprintln(&b)
	}
	file := filepath.Join(t.TempDir(), "generated.csv")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

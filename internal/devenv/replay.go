package devenv

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unicode/utf8"
)

// replay yields the rows of a CSV file, each once.
//
// The first row names the columns. A first column without a name, or "Unnamed:
// 0", is the row's index and becomes seq; without one, seq is the number of the
// row from 0. The column "timestamp" is the device's time, UTC where it names
// no zone. Every other column is a metric of that name: a cell that is a JSON
// number is passed on in the same characters, any other as a string. Row i
// belongs to device i modulo the number of devices.
type replay struct {
	path    string
	file    io.Closer
	rows    *csv.Reader
	names   []string
	keys    [][]byte // each column's name as a JSON key with its colon; nil for index and timestamp
	indexed bool     // column 0 is the index
	time    int      // column of the timestamp
	devices []string
	row     int64
	buffer  []byte
}

const timestampColumn = "timestamp"

// openReplay opens the file and reads its header. Its devices have the numbers
// from first up.
func openReplay(path string, first, devices int) (*replay, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the file to replay: %w", err)
	}
	in := bufio.NewReader(file)
	if mark, err := in.Peek(3); err == nil && bytes.Equal(mark, []byte("\ufeff")) {
		if _, err := in.Discard(len(mark)); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	r := &replay{path: path, file: file, rows: csv.NewReader(in)}
	for i := range devices {
		r.devices = append(r.devices, deviceName(first-1+i))
	}
	if err := r.header(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// Close closes the file.
func (r *replay) Close() error { return r.file.Close() }

// header reads the names of the columns.
func (r *replay) header() error {
	names, err := r.rows.Read()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%q is empty, want a header", r.path)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", r.path, err)
	}
	r.names, r.time, r.keys = names, -1, make([][]byte, len(names))
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		if i == 0 && (name == "" || name == "Unnamed: 0") {
			r.indexed = true
			continue
		}
		if name == "" || !utf8.ValidString(name) || seen[name] {
			return r.fault(i, "the column's name is empty, a repetition, or no UTF-8")
		}
		seen[name] = true
		if name == timestampColumn {
			r.time = i
			continue
		}
		key, err := json.Marshal(name)
		if err != nil {
			return r.fault(i, err.Error())
		}
		r.keys[i] = append(key, ':')
	}
	if r.time < 0 {
		return fmt.Errorf("%q, line 1: no column is named %q", r.path, timestampColumn)
	}
	return nil
}

// fault describes a cell of the row that was read last.
func (r *replay) fault(column int, problem string) error {
	line, _ := r.rows.FieldPos(column)
	return fmt.Errorf("%q, line %d, column %d (%q): %s", r.path, line, column+1, r.names[column], problem)
}

// next is the file's next row. The clock plays no part.
func (r *replay) next(time.Time) (reading, error) {
	cells, err := r.rows.Read()
	if errors.Is(err, io.EOF) {
		return reading{}, io.EOF
	}
	if err != nil {
		return reading{}, fmt.Errorf("%q: %w", r.path, err)
	}
	seq := r.row
	if r.indexed {
		if seq, err = strconv.ParseInt(cells[0], 10, 64); err != nil || seq < 0 {
			return reading{}, r.fault(0, fmt.Sprintf("%q is no index, want a whole number from 0", cells[0]))
		}
	}
	at, err := parseTimestamp(cells[r.time])
	if err != nil {
		return reading{}, r.fault(r.time, fmt.Sprintf("%q is no time, want 2006-01-02 15:04:05 or RFC 3339", cells[r.time]))
	}
	device := r.devices[r.row%int64(len(r.devices))]
	r.row++
	r.buffer = appendHead(r.buffer[:0], at, seq, "parameters", device)
	if err := r.appendMetrics(cells); err != nil {
		return reading{}, err
	}
	return reading{device: device, seq: seq, payload: r.buffer}, nil
}

func (r *replay) appendMetrics(cells []string) error {
	separator := byte('{')
	for i, key := range r.keys {
		if key == nil {
			continue
		}
		r.buffer = append(append(r.buffer, separator), key...)
		separator = ','
		if isNumber(cells[i]) {
			r.buffer = append(r.buffer, cells[i]...)
			continue
		}
		if !utf8.ValidString(cells[i]) {
			return r.fault(i, fmt.Sprintf("%q is no UTF-8", cells[i]))
		}
		text, err := json.Marshal(cells[i])
		if err != nil {
			return r.fault(i, err.Error())
		}
		r.buffer = append(r.buffer, text...)
	}
	if separator == '{' {
		r.buffer = append(r.buffer, '{')
	}
	r.buffer = append(r.buffer, '}', '}')
	return nil
}

// isNumber reports whether the cell is a JSON number and nothing around it.
func isNumber(cell string) bool {
	if cell == "" || cell[0] != '-' && (cell[0] < '0' || cell[0] > '9') {
		return false
	}
	last := cell[len(cell)-1]
	return last >= '0' && last <= '9' && json.Valid([]byte(cell))
}

// parseTimestamp reads a time with or without a zone, to the nanosecond.
func parseTimestamp(text string) (time.Time, error) {
	if at, err := time.Parse(time.DateTime, text); err == nil {
		return at, nil
	}
	return time.Parse(time.RFC3339, text)
}

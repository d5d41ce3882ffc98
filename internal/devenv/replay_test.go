package devenv

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signals.csv")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// payloads replays the whole file.
func payloads(path string, devices int) ([]string, error) {
	r, err := openReplay(path, 1, devices)
	if err != nil {
		return nil, err
	}
	var all []string
	for {
		next, err := r.next(noon)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return all, errors.Join(err, r.Close())
		}
		all = append(all, string(next.payload))
	}
}

func TestReplayCarriesCellsVerbatim(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, file string
		devices    int
		want       []string
	}{{
		name:    "index, devices in turn",
		devices: 2,
		file: "Unnamed: 0,timestamp,TP2,state\n" +
			"0,2020-02-01 00:00:00,-0.0120000000000004,on\n" +
			"10,2020-02-01T01:00:10+01:00,9.350,\n" +
			"20,2020-02-01 00:00:20,-0,\"a \"\"b\"\"\"\n",
		want: []string{
			`{"ts":1580515200000,"seq":0,"kind":"parameters","device_id":"cmp-00001","metrics":{"TP2":-0.0120000000000004,"state":"on"}}`,
			`{"ts":1580515210000,"seq":10,"kind":"parameters","device_id":"cmp-00002","metrics":{"TP2":9.350,"state":""}}`,
			`{"ts":1580515220000,"seq":20,"kind":"parameters","device_id":"cmp-00001","metrics":{"TP2":-0,"state":"a \"b\""}}`,
		},
	}, {
		name:    "byte order mark, no index, timestamp last, what is no JSON number",
		devices: 1,
		file: "\ufeffa,b,timestamp\r\n" +
			"NaN,1e5,2020-02-01 00:00:00\r\n" +
			"+1,.5,2020-02-01 00:00:00.0005\r\n" +
			"1 ,007,2020-02-01 00:00:01\r\n",
		want: []string{
			`{"ts":1580515200000,"seq":0,"kind":"parameters","device_id":"cmp-00001","metrics":{"a":"NaN","b":1e5}}`,
			`{"ts":"2020-02-01T00:00:00.0005Z","seq":1,"kind":"parameters","device_id":"cmp-00001","metrics":{"a":"+1","b":".5"}}`,
			`{"ts":1580515201000,"seq":2,"kind":"parameters","device_id":"cmp-00001","metrics":{"a":"1 ","b":"007"}}`,
		},
	}, {
		name:    "no name for the index, no metrics",
		devices: 1,
		file:    ",timestamp\n5,2020-02-01 00:00:00\n",
		want:    []string{`{"ts":1580515200000,"seq":5,"kind":"parameters","device_id":"cmp-00001","metrics":{}}`},
	}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := payloads(writeFile(t, test.file), test.devices)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("payloads (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReplayNamesTheFault(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, file, want string }{
		{"empty", "", "is empty"},
		{"no timestamp", "a,b\n1,2\n", `line 1: no column is named "timestamp"`},
		{"column twice", "timestamp,a,a\n", `line 1, column 3 ("a")`},
		{"column without a name", "timestamp,\n", `line 1, column 2 ("")`},
		{"too few cells", "timestamp,a\n2020-02-01 00:00:00,1\n2020-02-01 00:00:00\n", "line 3: wrong number of fields"},
		{"bare quote", "timestamp,a\n2020-02-01 00:00:00,1\"2\n", `line 2, column 22: bare " in non-quoted`},
		{"time", "timestamp,a\n2020-02-01 00:00:00,1\nyesterday,2\n", `line 3, column 1 ("timestamp"): "yesterday" is no time`},
		{"index", ",timestamp\n1.5,2020-02-01 00:00:00\n", `line 2, column 1 (""): "1.5" is no index`},
		{"negative index", ",timestamp\n-1,2020-02-01 00:00:00\n", `line 2, column 1 (""): "-1" is no index`},
		{"no UTF-8", "timestamp,a\n2020-02-01 00:00:00,\xff\n", `line 2, column 2 ("a"): "\xff" is no UTF-8`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, test.file)
			_, err := payloads(path, 1)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %q and the file", err, test.want)
			}
		})
	}
	if _, err := openReplay(filepath.Join(t.TempDir(), "none"), 1, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Whatever the cells hold, the payload says the same.
func TestReplayEqualsItsFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "signals.csv")
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Custom(func(t *rapid.T) string {
			return strconv.FormatFloat(rapid.Float64().Draw(t, "number"), 'f', -1, 64)
		})
		word := rapid.StringMatching(`[ -~é€"\n,]{0,8}`)
		rows := rapid.SliceOfN(rapid.SliceOfN(rapid.OneOf(number, word), 3, 3), 1, 20).Draw(t, "rows")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		out := csv.NewWriter(file)
		out.Write([]string{"Unnamed: 0", "timestamp", "a", "b", "c"})
		for i, row := range rows {
			out.Write(append([]string{strconv.Itoa(i), noon.Truncate(time.Second).Format(time.DateTime)}, row...))
		}
		out.Flush()
		if err := errors.Join(out.Error(), file.Close()); err != nil {
			t.Fatal(err)
		}
		got, err := payloads(path, 1)
		if err != nil || len(got) != len(rows) {
			t.Fatalf("%d payloads of %d rows, %v", len(got), len(rows), err)
		}
		for i, payload := range got {
			var m struct{ Metrics map[string]any }
			decoder := json.NewDecoder(strings.NewReader(payload))
			decoder.UseNumber()
			if err := decoder.Decode(&m); err != nil {
				t.Fatalf("%s: %v", payload, err)
			}
			for column, cell := range rows[i] {
				var text string
				switch value := m.Metrics[string(rune('a'+column))].(type) {
				case json.Number:
					text = value.String()
				case string:
					text = value
				}
				if text != cell {
					t.Fatalf("cell %q became %q in %s", cell, text, payload)
				}
			}
		}
	})
}

package endtoend

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/internal/devenv/devtest"
)

// quarantine inserts a line and returns its id; a nil payload is one that was not kept.
func (s *system) quarantine(code, detail, topic string, payload []byte) int64 {
	s.t.Helper()
	var id int64
	err := s.query(`insert into telemetry_quarantine (code, detail, topic, payload) values ($1, $2, $3, $4) returning id`,
		[]any{code, detail, topic, payload}, &id)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func seconds(t time.Time, metrics string) []byte {
	return fmt.Appendf(nil, `{"ts": %d, "metrics": %s}`, t.Unix(), metrics)
}

// TestToolQuarantine is an operator's night: ingest quarantines, the operator looks, corrects the configuration, replays and
// cleans up.
func TestToolQuarantine(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	now := time.Now()
	s.publish("telemetry/pump-7/fault", []string{string(seconds(now, `{"bar": 7.9}`)), `{"ts": "x", "metrics": {}}`})
	s.publish("telemetry/pump-8", []string{string(seconds(now, `{"bar": 8.1}`)), "\x01\x02\xff"})
	if code := ingest.terminate(); code != 0 {
		t.Fatalf("ingest exits %d", code)
	}
	expect := s.expect()
	if n := s.count("telemetry_quarantine"); n != 4 {
		t.Fatalf("%d lines are quarantined", n)
	}
	list := expect(0, "RECEIVED", "quarantine", "list")
	if lines := strings.Split(strings.TrimSpace(list), "\n"); len(lines) != 5 || !strings.HasPrefix(lines[1], "4  ") || !strings.HasPrefix(lines[4], "1  ") {
		t.Errorf("not the newest first:\n%s", list)
	}
	expect(0, "there are older ones", "quarantine", "list", "--limit", "1")
	var listed []struct {
		ID    int64
		Topic string
	}
	ids := func(args ...string) (all []int64) {
		t.Helper()
		if err := json.Unmarshal([]byte(expect(0, "[", append([]string{"quarantine", "list", "--output", "json"}, args...)...)), &listed); err != nil {
			t.Fatal(err)
		}
		for _, l := range listed {
			all = append(all, l.ID)
		}
		slices.Sort(all)
		return all
	}
	for _, test := range []struct {
		want []int64
		args []string
	}{
		{[]int64{1, 2, 3, 4}, []string{"--since", "1h"}},
		{[]int64{1, 2, 3, 4}, []string{"--since", now.UTC().AddDate(0, 0, -1).Format(time.DateOnly), "--limit", "4"}},
		{nil, []string{"--since", now.Add(time.Hour).Format(time.RFC3339)}},
		{[]int64{1, 2, 3}, []string{"--code", "bad_time"}},
		{[]int64{1, 2}, []string{"--device", "pump-7"}},
		{[]int64{4}, []string{"--device", "pump-8", "--code", "not_utf8"}},
		{nil, []string{"--device", "pump"}},
		{[]int64{3, 4}, []string{"--limit", "2"}},
	} {
		if got := ids(test.args...); !slices.Equal(got, test.want) {
			t.Errorf("list %v: %v, want %v", test.args, got, test.want)
		}
	}
	expect(0, "nothing", "quarantine", "list", "--device", "pump")

	expect(0, `{"ts": "x", "metrics": {}}`, "quarantine", "show", "2")
	expect(0, "00000000  01 02 ff ", "quarantine", "show", "4")
	raw := expect(0, "", "quarantine", "show", "1", "--raw")
	if raw != string(seconds(now, `{"bar": 7.9}`)) {
		t.Errorf("the bytes are %q", raw)
	}
	if code, out, _ := s.ctlWith(raw, "try", "--topic", "telemetry/pump-7/fault", "--payload.time_unit", "s"); code != 0 || !strings.Contains(out, `"payload":{"bar":7.9}`) {
		t.Errorf("try exits %d: %s", code, out)
	}

	expect(3, "would replay 1 of 2 lines: 1 rejected again", "quarantine", "replay", "1", "--dry-run", "2", "4", "2", "--code=bad_time", "--payload.time_unit", "s")
	expect(3, "replayed 2 of 4 lines: 2 rejected again", "quarantine", "replay", "--payload.time_unit", "s")
	if rows, ledger := s.count("telemetry"), s.count("telemetry_batch where row_count = 1 and source = 'plenumctl'"); rows != 2 || ledger != 2 {
		t.Errorf("%d rows are stored, with %d ledger lines", rows, ledger)
	}
	expect(0, "replayed 0 of 0", "quarantine", "replay", "--device", "pump-8", "--code", "bad_time")
	expect(0, "deleted 2 lines", "quarantine", "purge", "--replayed")

	// What the device sends again is stored before.
	ingest = s.ingest("PLENUM_PAYLOAD_TIME_UNIT=s").awaitReady()
	s.publish("telemetry/pump-7/fault", []string{raw})
	devtest.Eventually(t, func() error {
		if n := ingest.metric(`plenum_ingest_rows_total{result="duplicate"}`); n != 1 {
			return fmt.Errorf("%v duplicates", n)
		}
		return nil
	})
}

// TestToolQuarantineBadInput is what the quarantine's commands refuse, each with its exit code and without doing anything.
func TestToolQuarantineBadInput(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(1, "run plenumctl migrate up", "quarantine", "list")
	expect(0, "version", "migrate", "up")
	id := s.quarantine("bad_time", "x", "telemetry/a", []byte("{}"))
	for _, command := range []string{"show", "replay", "purge"} {
		for _, bad := range []string{"x", "0", "1.5", "99999999999999999999", ""} {
			expect(2, "is not the id of a line", "quarantine", command, bad)
		}
		expect(2, "", "quarantine", command, "-5")
		expect(2, "is not the id of a line", "quarantine", command, "--", "-5")
		expect(1, "no line of the quarantine has id 77", "quarantine", command, "77")
	}
	expect(2, "one ID is needed, 0 are given", "quarantine", "show")
	expect(2, "one ID is needed, 2 are given", "quarantine", "show", "1", "2")
	expect(2, "exclude each other", "quarantine", "show", "1", "--raw", "--output", "json")
	expect(1, "has id 77, 78; nothing was done", "quarantine", "purge", "78", "77", fmt.Sprint(id))
	expect(2, "say what", "quarantine", "purge")
	expect(2, "say what", "quarantine", "purge", "--dry-run")
	for _, also := range []string{fmt.Sprint(id), "--code=bad_time", "--replayed", "--before=1h", "--device=a"} {
		expect(2, "--all means everything", "quarantine", "purge", "--all", also)
	}
	expect(2, "none of too_large, not_utf8", "quarantine", "list", "--code", "no_code")
	expect(2, "none of too_large, not_utf8", "quarantine", "replay", "--code", "")
	for _, bad := range []string{"0", "-1", "x"} {
		expect(2, "-limit", "quarantine", "list", "--limit", bad)
	}
	for _, bad := range []string{"nonsense", "0s", "-1h", "2026-13-01", "d", "-1d"} {
		expect(2, "it is not a time such as", "quarantine", "list", "--since", bad)
		expect(2, "it is not a time such as", "quarantine", "purge", "--before", bad)
	}
	expect(2, "--output", "quarantine", "replay", "--output", "xml")
	expect(2, "unexpected argument", "quarantine", "list", "1")
	expect(2, "payload.time_unit", "quarantine", "replay", "--payload.time_unit", "x")
	expect(0, "replayed 0 of 0 lines", "quarantine", "replay", "--code", "conflict")
	if n := s.count("telemetry_quarantine where replayed_at is null"); n != 1 {
		t.Errorf("%d lines are left", n)
	}
}

// TestToolReplay replays what can be stored, says of the rest why not, and leaves that as it is.
func TestToolReplay(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	now := time.Now()
	whole := string(seconds(now, `{"n": 1}`))
	good := s.quarantine("bad_time", "x", "telemetry/good", []byte(whole))
	equal := s.quarantine("bad_time", "x", "telemetry/good", []byte(whole))
	conflict := s.quarantine("bad_time", "x", "telemetry/good", seconds(now, `{"n": 2}`))
	bad := s.quarantine("not_json", "x", "telemetry/good", []byte("no\x1b[31m"))
	dropped := s.quarantine("bad_time", "x", "telemetry/good", nil)
	cut := s.quarantine("bad_time", "x", "telemetry/"+strings.Repeat("x", 1000)+"…", []byte(whole))
	part := s.quarantine("too_large", fmt.Sprintf("payload: %d bytes is more than 8", len(whole)+1), "telemetry/part", []byte(whole))
	large := s.quarantine("too_large", fmt.Sprintf("payload: %d bytes is more than 8", len(whole)), "telemetry/large", []byte(whole))
	elements := []string{whole}
	for range 101 {
		elements = append(elements, "1")
	}
	mixed := s.quarantine("bad_type", "x", "telemetry/mixed", []byte("["+strings.Join(elements, ",")+"]"))
	s.exec(`alter table telemetry add constraint no_evil check (device_id <> 'evil')`)
	evil := s.quarantine("bad_time", "x", "telemetry/evil", []byte(whole))

	expect(0, fmt.Sprintf("%d  would be readings: 1\n", good), "quarantine", "replay", "--dry-run", "--payload.time_unit", "s", fmt.Sprint(good))
	if n := s.count("telemetry") + s.count("telemetry_quarantine where replayed_at is not null"); n != 0 {
		t.Fatalf("a dry run leaves %d traces", n)
	}
	out := expect(3, "", "quarantine", "replay", "--payload.time_unit", "s")
	want := fmt.Sprintf(`%d  replayed: 1 stored, 0 stored before
%d  replayed: 0 stored, 1 stored before
%d  rejected again, conflict: the same identity is stored with another payload
%d  rejected again, not_json: payload: 'o' at offset 1 is not JSON
%d  cannot be replayed, bad_time: its payload was not kept, because the quarantine was full
%d  cannot be replayed, bad_time: its topic was too long to be kept whole
%d  cannot be replayed, too_large: of its %d bytes only the first %d were kept
%d  replayed: 1 stored, 0 stored before
%d  replayed: 1 stored, 0 stored before; 1 quarantined again, bad_type: 101 of 102 elements rejected, first: element 1: 1 is a number, not an object
%d  rejected again, rejected_by_database: PostgreSQL: new row for relation "telemetry_p%s" violates check constraint "no_evil" (SQLSTATE 23514)
replayed 4 of 10 lines: 3 rejected again, 3 not kept whole
`, good, equal, conflict, bad, dropped, cut, part, len(whole)+1, len(whole), large, mixed, evil, now.UTC().Format("20060102"))
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("replay: %s", d)
	}
	rows := func(what, sql, want string) {
		t.Helper()
		var got string
		if err := s.query(`select coalesce(string_agg(x::text, ' ' order by x), '') from (`+sql+`) q(x)`, nil, &got); err != nil || got != want {
			t.Errorf("%s: %q, want %q, %v", what, got, want, err)
		}
	}
	rows("rows", `select device_id || payload::text from telemetry`, `good{"n": 1} large{"n": 1} mixed{"n": 1}`)
	rows("lines replayed", `select id from telemetry_quarantine where replayed_at is not null`, fmt.Sprintf("%d %d %d %d", good, equal, large, mixed))
	rows("new lines", fmt.Sprintf(`select code || ' ' || topic || ' ' || length(payload) from telemetry_quarantine where id > %d`, evil),
		fmt.Sprintf("bad_type telemetry/mixed %d", len(whole)+2*101+2))
	rows("accounts", `select received || '=' || stored || '+' || duplicate || '+' || quarantined from ingest_account`, "5=3+1+1")

	half := s.quarantine("bad_type", "x", "telemetry/half", []byte("["+string(seconds(now.Add(time.Second), "{}"))+",1]"))
	expect(3, "replayed 1 of 1 lines: 0 rejected again", "quarantine", "replay", "--payload.time_unit", "s", fmt.Sprint(half))

	// A line may be weeks old, and what it becomes stored on any live day.
	day := now.UTC().Truncate(24*time.Hour).AddDate(0, 0, -5)
	s.exec(fmt.Sprintf(`create table telemetry_old partition of telemetry for values from ('%s') to ('%s')`, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	s.exec(`create unique index on telemetry_old (device_id, kind, recorded_at, seq) nulls not distinct`)
	s.exec(`insert into telemetry (last_modified, recorded_at, device_id, kind, payload) values ($1, $2, 'old', 'parameters', '{"n": 1}')`, day, now.Truncate(time.Second))
	old := s.quarantine("bad_time", "x", "telemetry/old", []byte(whole))
	expect(0, "replayed: 0 stored, 1 stored before", "quarantine", "replay", "--payload.time_unit", "s", fmt.Sprint(old))

	// Arrival is when the message came, not when it is replayed.
	s.quarantine("missing_field", "x", "telemetry/clockless", []byte(`{"metrics": {}}`))
	expect(0, "replayed: 1 stored", "quarantine", "replay", "--payload.time_unit", "arrival", "--device", "clockless")
	if n := s.count("telemetry t join telemetry_quarantine q on t.recorded_at = q.received_at where t.device_id = 'clockless'"); n != 1 {
		t.Error("the time of arrival is another")
	}

	expect(0, fmt.Sprintf("%d  replayed before\nreplayed 0 of 1 lines", good), "quarantine", "replay", fmt.Sprint(good))
	var report struct {
		Lines []struct {
			ID     int64
			Result string
		}
		RejectedAgain int `json:"rejected_again"`
		Unreplayable  int
	}
	jsonOut := expect(3, "{", "quarantine", "replay", "--device", "good", "--output", "json")
	if err := json.Unmarshal([]byte(jsonOut), &report); err != nil || len(report.Lines) != 3 || report.RejectedAgain != 2 || report.Unreplayable != 1 {
		t.Errorf("%v, %+v:\n%s", err, report, jsonOut)
	}
}

// TestToolReplaysAtOnce has two replays take the same lines: each is stored by one of them.
func TestToolReplaysAtOnce(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.expect()(0, "version", "migrate", "up")
	const n = 200
	s.exec(`insert into telemetry_quarantine (code, detail, topic, payload)
		select 'bad_time', 'x', 'telemetry/d-' || n, convert_to(format('{"ts": %s, "metrics": {"n": %s}}', extract(epoch from now())::bigint, n), 'UTF8')
		from generate_series(1, $1::int) n`, n)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if code, out, errs := s.ctl("quarantine", "replay", "--payload.time_unit", "s"); code != 0 {
				t.Errorf("replay exits %d:\n%s%s", code, out, errs)
			}
		})
	}
	both.Wait()
	if rows, lines := s.count("telemetry"), s.count("telemetry_quarantine where replayed_at is not null"); rows != n || lines != n {
		t.Errorf("%d rows of %d lines, want %d", rows, lines, n)
	}
	if again := s.count("ingest_account where duplicate + quarantined > 0"); again != 0 {
		t.Error("a line was stored twice")
	}
}

// TestToolPurge deletes what is selected and nothing else, and returns the space.
func TestToolPurge(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	a := s.quarantine("bad_time", "x", "telemetry/a", []byte("abc"))
	b := s.quarantine("bad_time", "x", "telemetry/b", []byte("abcd"))
	c := s.quarantine("not_json", "x", "telemetry/b", nil)
	s.exec(`update telemetry_quarantine set replayed_at = now() where id = $1`, b)
	left := func(want ...int64) {
		t.Helper()
		var got []int64
		if err := s.query(`select coalesce(array_agg(id order by id), '{}') from telemetry_quarantine`, nil, &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v, %v", got, want, err)
		}
	}
	expect(0, "deleted 0 lines", "quarantine", "purge", "--before", "1h")
	expect(0, "deleted 0 lines", "quarantine", "purge", "--replayed", fmt.Sprint(a))
	expect(0, "would delete 2 lines with 7 B of payloads", "quarantine", "purge", "--code", "bad_time", "--dry-run")
	left(a, b, c)
	expect(0, "deleted 1 lines with 4 B", "quarantine", "purge", "--replayed")
	left(a, c)
	expect(0, "deleted 1 lines", "quarantine", "purge", fmt.Sprint(c), "--device", "b")
	left(a)
	// Autovacuum adds free space maps at a time of its own; the sizes below are exact without it.
	s.exec(`do $$ declare leaf regclass; begin
		for leaf in select inhrelid from pg_inherits where inhparent = 'telemetry_quarantine'::regclass loop
			execute format('alter table %s set (autovacuum_enabled = off, toast.autovacuum_enabled = off)', leaf);
		end loop; end $$`)
	s.exec(`insert into telemetry_quarantine (code, detail, topic, payload) select 'not_json', 'x', 'telemetry/b', decode(string_agg(md5(m::text || n::text), ''), 'hex')
		from generate_series(1, 1200) n, generate_series(1, 100) m group by n`)
	var before, after int64
	size := func(into *int64) {
		t.Helper()
		if err := s.query(`select sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits where inhparent = 'telemetry_quarantine'::regclass`, nil, into); err != nil {
			t.Fatal(err)
		}
	}
	size(&before)
	out := expect(0, `"lines": 1200,`, "quarantine", "purge", "--code", "not_json", "--output", "json")
	left(a)
	size(&after)
	var report struct {
		Before int64 `json:"quarantine_bytes_before"`
		After  int64 `json:"quarantine_bytes"`
		Bytes  int64 `json:"payload_bytes"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Before != before || report.After != after || report.Bytes != 1200*1600 {
		t.Errorf("%v, %d bytes before and %d after:\n%s", err, before, after, out)
	}
	if after > before/4 {
		t.Errorf("%d bytes are left of %d", after, before)
	}
	expect(0, "deleted 1 lines", "quarantine", "purge", "--all")
	left()
}

// TestToolSummary counts by the device that topics name, says how much it leaves out, and shows no byte of a device's as it
// came.
func TestToolSummary(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "version", "migrate", "up")
	expect(0, "nothing", "quarantine", "list", "--summary")
	s.quarantine("bad_time", "older", "telemetry/a", nil)
	s.quarantine("bad_time", "old", "telemetry/a/fault", nil)
	s.quarantine("bad_time", "new", "telemetry/a", nil)
	s.quarantine("not_json", "x", "telemetry/a", nil)
	s.quarantine("topic_mismatch", "\x1b[31m", "else/\nwhere/"+strings.Repeat("y", 100), []byte("\x1b[31m"))
	s.exec(`update telemetry_quarantine set replayed_at = now() where detail = 'old'`)
	type group struct {
		Code, Device    string
		Lines, Replayed int
		Example         string
	}
	var report struct {
		Groups          []group
		More            int `json:"more_groups"`
		UncountedTopics int `json:"uncounted_topics"`
		UncountedLines  int `json:"uncounted_lines"`
	}
	read := func(args ...string) {
		t.Helper()
		out := expect(0, "{", append([]string{"quarantine", "list", "--summary", "--output", "json"}, args...)...)
		report.Groups = nil
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
	}
	read("--limit", "2")
	if d := cmp.Diff([]group{{"bad_time", "a", 3, 1, "new"}, {"topic_mismatch", "else/\nwhere/" + strings.Repeat("y", 100), 1, 0, "\x1b[31m"}}, report.Groups); d != "" || report.More != 1 {
		t.Errorf("%d more, %s", report.More, d)
	}
	read("--device", "a", "--code", "not_json")
	if d := cmp.Diff([]group{{"not_json", "a", 1, 0, "x"}}, report.Groups); d != "" {
		t.Error(d)
	}
	for _, args := range [][]string{{"quarantine", "list"}, {"quarantine", "list", "--summary"}, {"quarantine", "show", "5"}} {
		if out := expect(0, `else/\nwhere/yy`, args...); strings.Contains(out, "\x1b") || !strings.Contains(out, `\x1b[31m`) {
			t.Errorf("%v writes an escape sequence of a device:\n%q", args, out)
		}
	}
	s.exec(`insert into telemetry_quarantine (code, detail, topic) select 'bad_value', 'x', 'telemetry/d-' || n from generate_series(1, 10010) n`)
	read()
	if len(report.Groups) != 100 || report.UncountedTopics != 14 || report.UncountedLines != 14 {
		t.Errorf("%d groups, %d topics with %d lines are left out", len(report.Groups), report.UncountedTopics, report.UncountedLines)
	}
	expect(0, "14 more pairs of code and topic with 14 lines", "quarantine", "list", "--summary")
}

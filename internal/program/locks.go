package program

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	lookEvery = 250 * time.Millisecond
	// longWait is from when a wait is worth a finding: shorter ones belong to a server at work.
	longWait   = time.Second
	waitsShown = 20 // findings, the longest waits first
	namesShown = 3  // sessions that one of them names
)

// A lockSession is a session that waits for a lock or holds one up, as pg_stat_activity has it.
type lockSession struct {
	PID         int32
	Application string
	Role        string
	State       string
	Query       string
	Hidden      bool // its query is not shown to this role
	WaitEvent   string
	StateAge    time.Duration
	XactAge     time.Duration // 0 outside a transaction
	Prepared    bool          // a prepared transaction; nothing else is known
}

// A lockWait is a session that waits for others.
type lockWait struct {
	lockSession
	Lock    string // mode and object
	Waited  time.Duration
	Blocker []int32 // 0 is a prepared transaction
}

// lockSample is one look at who waits for whom.
type lockSample struct {
	waits    map[int32]lockWait
	sessions map[int32]lockSession // of those waited for
}

// lookAtLocks reads who waits for a lock in this database, and for whom. The tool's own sessions are left out.
func lookAtLocks(ctx context.Context, pool *pgxpool.Pool) (lockSample, error) {
	const q = `with waiting as materialized (
			select a.pid, pg_blocking_pids(a.pid) as blockers from pg_stat_activity a
			where a.datname = current_database() and a.application_name <> current_setting('application_name')
				and exists (select from pg_locks l where l.pid = a.pid and not l.granted) -- which every role sees
		), concerned as (
			select pid from waiting where cardinality(blockers) > 0 union select unnest(blockers) from waiting
		)
		select c.pid, coalesce(a.application_name, ''), coalesce(a.usename, ''), coalesce(a.state, ''), coalesce(left(a.query, 2000), ''),
			coalesce(a.query = '<insufficient privilege>', false),
			coalesce(a.wait_event_type || '/' || a.wait_event, ''), coalesce(extract(epoch from clock_timestamp() - a.state_change), 0)::float8,
			coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::float8, coalesce(w.blockers, '{}'),
			coalesce(l.mode || ' on ' || case l.locktype
				when 'relation' then coalesce(l.relation::regclass::text, '?')
				when 'tuple' then 'a row of ' || coalesce(l.relation::regclass::text, '?')
				when 'transactionid' then 'a row that another transaction has changed'
				when 'advisory' then format('advisory lock %s, %s', l.classid, l.objid)
				else l.locktype end, 'a lock'),
			coalesce(extract(epoch from clock_timestamp() - l.waitstart), 0)::float8, a.pid is null
		from concerned c left join waiting w using (pid) left join pg_stat_activity a using (pid)
		left join lateral (select * from pg_locks l where l.pid = c.pid and not l.granted limit 1) l on true
		order by c.pid`
	s := lockSample{map[int32]lockWait{}, map[int32]lockSession{}}
	rows, err := pool.Query(ctx, q)
	if err != nil {
		return s, fmt.Errorf("read who waits for whom: %w", err)
	}
	var w lockWait
	var inState, inXact, waited float64
	_, err = pgx.ForEachRow(rows, []any{
		&w.PID, &w.Application, &w.Role, &w.State, &w.Query, &w.Hidden, &w.WaitEvent, &inState, &inXact, &w.Blocker, &w.Lock, &waited, &w.Prepared,
	}, func() error {
		w.StateAge, w.XactAge, w.Waited = seconds(inState), seconds(inXact), seconds(waited)
		w.Blocker = slices.Compact(slices.Sorted(slices.Values(w.Blocker)))
		w.Prepared = w.PID == 0
		s.sessions[w.PID] = w.lockSession
		if len(w.Blocker) > 0 {
			s.waits[w.PID] = w
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("read who waits for whom: %w", err)
	}
	return s, nil
}

func seconds(s float64) time.Duration { return time.Duration(max(s, 0) * float64(time.Second)) }

// roots are the sessions at the end of the chain of waits that begins with pid, which wait for nobody; none in a cycle.
func (s lockSample) roots(pid int32) (ends []int32) {
	seen := map[int32]bool{}
	var follow func(int32)
	follow = func(pid int32) {
		if seen[pid] {
			return
		}
		seen[pid] = true
		w, waits := s.waits[pid]
		if !waits {
			ends = append(ends, pid)
		}
		for _, b := range w.Blocker {
			follow(b)
		}
	}
	follow(pid)
	slices.Sort(ends)
	return ends
}

// lockWatch is what several looks have seen.
type lockWatch struct {
	looks int
	last  map[lockKey]lockSeen // the longest of each
}

type lockKey struct {
	pid  int32
	lock string
}

type lockSeen struct {
	lockWait
	sample lockSample
}

// watchLocks looks every lookEvery for the time of sample.
func watchLocks(ctx context.Context, pool *pgxpool.Pool, sample time.Duration) (lockWatch, error) {
	w := lockWatch{last: map[lockKey]lockSeen{}}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := max(int(sample/lookEvery), 1); ; {
		s, err := lookAtLocks(ctx, pool)
		if err != nil {
			return w, err
		}
		w.note(s)
		if w.looks >= n {
			return w, nil
		}
		select {
		case <-ctx.Done():
			return w, ctx.Err()
		case <-tick.C:
		}
	}
}

func (w *lockWatch) note(s lockSample) {
	w.looks++
	for _, wait := range s.waits {
		key := lockKey{wait.PID, wait.Lock}
		if seen, known := w.last[key]; !known || wait.Waited >= seen.Waited {
			w.last[key] = lockSeen{wait, s}
		}
	}
}

// ailments are the long waits, each root's one after the other, and a text for what else was seen.
func (w *lockWatch) ailments() (found []Ailment, text string) {
	short := map[int32]bool{}
	var long []lockSeen
	for _, seen := range w.last {
		if seen.Waited < longWait {
			short[seen.PID] = true
		} else {
			long = append(long, seen)
		}
	}
	slices.SortFunc(long, func(a, b lockSeen) int { return int(b.Waited/time.Millisecond) - int(a.Waited/time.Millisecond) })
	for _, seen := range long[:min(len(long), waitsShown)] {
		found = append(found, seen.ailment())
	}
	if more := len(long) - len(found); more > 0 {
		found = append(found, Ailment{
			Subject: "other sessions", Message: Plural(more, "more session") + " waiting for locks, none longer than these",
			Do: "end what is at the root of these first, then look again",
		})
	}
	over := time.Duration(w.looks) * lookEvery
	switch {
	case len(short) > 0:
		text = fmt.Sprintf("%s waited for a lock, for less than %s each, in %d looks over %s", Plural(len(short), "session"), longWait, w.looks, over)
	case len(long) == 0:
		text = fmt.Sprintf("no session waited for a lock in %d looks over %s", w.looks, over)
	}
	return found, text
}

func (s lockSeen) ailment() Ailment {
	behind := slices.SortedStableFunc(slices.Values(s.Blocker), func(a, b int32) int { // who holds a lock before who waits ahead in the line
		return len(s.sample.waits[a].Blocker) - len(s.sample.waits[b].Blocker)
	})
	a := Ailment{
		Subject: fmt.Sprint("pid ", s.PID),
		Message: fmt.Sprintf("%s waits for %s since %s, behind %s", s.lockSession, s.Lock, short(s.Waited), s.name(behind, lockSession.String)),
	}
	if roots := s.sample.roots(s.PID); len(roots) > 0 {
		a.Do = "at the root of it: " + s.name(roots, endSession)
	} else {
		a.Do = "they wait for each other: PostgreSQL ends one of them after deadlock_timeout"
	}
	if hidden := s.Hidden || slices.ContainsFunc(s.Blocker, func(pid int32) bool { return s.sample.sessions[pid].Hidden }); hidden {
		a.Do += "; queries of other roles are hidden from this one: grant pg_read_all_stats to it"
	}
	return a
}

// name says something of the first of the sessions, and counts the others: hundreds may hold one lock, or wait for it.
func (s lockSeen) name(pids []int32, say func(lockSession) string) string {
	var words []string
	for _, pid := range pids[:min(len(pids), namesShown)] {
		words = append(words, say(s.sample.sessions[pid]))
	}
	if more := len(pids) - len(words); more > 0 {
		words = append(words, fmt.Sprint(more, " more"))
	}
	return strings.Join(words, ", and ")
}

// endSession says how to end a session, once somebody has looked what it is.
func endSession(s lockSession) string {
	switch {
	case s.Prepared:
		return "a prepared transaction: select * from pg_prepared_xacts, then commit or rollback prepared"
	case s.State == "active":
		return fmt.Sprintf("pid %d, which is at work: wait for it, or select pg_cancel_backend(%[1]d)", s.PID)
	}
	return fmt.Sprintf("pid %d, which does nothing: select pg_terminate_backend(%[1]d)", s.PID)
}

// String names a session and what it does.
func (s lockSession) String() string {
	if s.Prepared {
		return "a prepared transaction"
	}
	var about []string
	add := func(text string, say bool) {
		if say {
			about = append(about, text)
		}
	}
	add(fmt.Sprintf("application %q", s.Application), s.Application != "")
	add("role "+s.Role, s.Role != "")
	add(strings.TrimSpace(s.State+" since "+short(s.StateAge)), s.State != "")
	add("transaction since "+short(s.XactAge), s.XactAge > 0)
	add("waits at "+s.WaitEvent, s.WaitEvent != "" && s.State == "active")
	text := fmt.Sprintf("pid %d", s.PID)
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	switch {
	case s.Hidden:
		text += ", query hidden"
	case s.Query != "":
		text += ", " + cutQuery(s.Query)
	}
	return text
}

const queryShown = 100

// cutQuery is a query on one line, in double quotes. What a terminal must not get is escaped there.
func cutQuery(query string) string {
	text := []rune(strings.Join(strings.Fields(query), " "))
	if len(text) > queryShown {
		text = append(text[:queryShown], '…')
	}
	return fmt.Sprintf("%q", string(text))
}

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

package partman

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Loop is one of the manager's three independent loops.
type Loop string

// The loops: none waits for another, and a failure in one costs the others nothing.
const (
	CreateLoop Loop = "create"
	RetireLoop Loop = "retire"
	HealthLoop Loop = "health"
)

// Retiring is a partition that is about to leave its table, as the hooks see it.
type Retiring struct {
	// Schema and Table name the table that loses the partition, PartitionSchema and Partition the leaf.
	Schema, Table, PartitionSchema, Partition string
	// From and To are its bounds in UTC, From included, To not.
	From, To time.Time
	// Kind is Move or Detach.
	Kind Kind
}

// Blocked is the error by which a guard refuses to let a partition go. It is no failure: the partition stays, and is
// asked about again in the next round.
type Blocked struct {
	// Reason is one word of a closed set: it becomes a metric's label.
	Reason string `json:"reason"`
	// Detail is for a person.
	Detail string `json:"detail,omitempty"`
}

func (b *Blocked) Error() string {
	if b.Detail == "" {
		return b.Reason
	}
	return b.Reason + ": " + b.Detail
}

// Config is what a Manager needs. Zero durations and counts take the defaults named here.
type Config struct {
	// Pool connects with the rights of the tables' owner, and not through a transaction pooler, which is refused with
	// ErrPooler. Each loop that acts holds one connection, and another while it waits; hooks that use the same pool need
	// theirs besides: 8 are enough.
	Pool *pgxpool.Pool
	// Schema holds partition_policy.
	Schema string
	// Prepare runs before a partition leaves, outside any transaction and lock but the loop's own. Optional.
	Prepare func(ctx context.Context, r Retiring) error
	// Guard runs in the transaction that takes the partition away, under a SHARE lock on it: writes to it wait, reads and
	// all other partitions go on. It returns *Blocked to refuse. Optional.
	Guard func(ctx context.Context, tx pgx.Tx, r Retiring) error
	// Acted is called after each action that was carried out, under the loop's lock: it must not block. Optional.
	Acted func(a Action)
	// Log is written on changes of state: by Run, and by whatever acts when another session than before holds it up.
	Log *zap.Logger
	// Registerer takes the metrics. Optional.
	Registerer prometheus.Registerer

	// CreateEvery, RetireEvery and HealthEvery are the loops' pauses between rounds: 1 min, 5 min, 30 s.
	CreateEvery, RetireEvery, HealthEvery time.Duration
	// LookEvery is the pause between two looks of Run for required indexes, and for who holds up an action: 5 s.
	LookEvery time.Duration
	// LockTimeout bounds each wait for a table lock that others would queue behind: 50 ms.
	LockTimeout time.Duration
	// Tries is how often an action that did not get its lock in time, or met a deadlock, is tried: 5.
	Tries int
	// Pause is the least time between two tries: 1 s. A random time up to as much again, doubling with each try, comes on top.
	Pause time.Duration
	// Deadline bounds each single statement, an index build or a scan included: 30 min.
	Deadline time.Duration
	// MaxRetire is the most partitions of one table that one round archives, detaches or drops: 4. After a month without
	// a run that is 48 an hour, and a wrong clock or policy is noticed before it has cost much.
	MaxRetire int
	// MaxRetireBytes is the most that they may hold together, indexes and TOAST included; a partition that is larger alone
	// is a finding and stays. 0 is no limit, the default: one that an ordinary day of a busy table exceeds fills the disk.
	MaxRetireBytes int64
	// Host, for tests, is this host's clock, which is compared with the database's.
	Host func() time.Time
	// Step, for tests, is called after each statement and hook of an action, and before and after each commit.
	Step func(ctx context.Context, p Point)
	// Now, for tests, turns the database's time into the one that decides.
	Now func(database time.Time) time.Time
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	or(&c.CreateEvery, time.Minute)
	or(&c.RetireEvery, 5*time.Minute)
	or(&c.HealthEvery, 30*time.Second)
	or(&c.LookEvery, 5*time.Second)
	or(&c.LockTimeout, 50*time.Millisecond)
	or(&c.Pause, time.Second)
	or(&c.Deadline, 30*time.Minute)
	if c.Tries <= 0 {
		c.Tries = 5
	}
	if c.MaxRetire <= 0 {
		c.MaxRetire = 4
	}
	if c.Now == nil {
		c.Now = func(t time.Time) time.Time { return t }
	}
	if c.Host == nil {
		c.Host = time.Now
	}
	if c.Step == nil {
		c.Step = func(context.Context, Point) {}
	}
	if c.Acted == nil {
		c.Acted = func(Action) {}
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c
}

// Manager keeps every table of partition_policy. Its methods are safe for concurrent use.
type Manager struct {
	cfg     Config
	metrics *metrics
	ensure  flights
	// woken lets a loop begin its next round at once.
	woken map[Loop]chan struct{}

	session  sync.Mutex // while the connection is examined
	examined bool       // no pooler was found

	mu   sync.Mutex
	seen map[string]*seen // by Policy.String
}

// New returns a manager; nothing happens before Run or another method is called.
func New(cfg Config) (*Manager, error) {
	if cfg.Pool == nil || cfg.Schema == "" {
		return nil, fmt.Errorf("partition manager: pool %v and schema %q are needed", cfg.Pool != nil, cfg.Schema)
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register partition metrics: %w", err)
	}
	woken := make(map[Loop]chan struct{})
	for _, loop := range []Loop{CreateLoop, RetireLoop, HealthLoop} {
		woken[loop] = make(chan struct{}, 1)
	}
	return &Manager{cfg: cfg, metrics: m, woken: woken, seen: make(map[string]*seen)}, nil
}

// wake has Run begin the loop's next round now, or after the one that is under way.
func (m *Manager) wake(loop Loop) {
	select {
	case m.woken[loop] <- struct{}{}:
	default: // it has been woken already
	}
}

// Run runs the three loops until ctx ends, and returns when the last one has stopped. What they meet is logged and
// counted; only the end of ctx stops them.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for loop, every := range map[Loop]time.Duration{
		CreateLoop: m.cfg.CreateEvery, RetireLoop: m.cfg.RetireEvery, HealthLoop: m.cfg.HealthEvery,
	} {
		wg.Go(func() { m.loop(ctx, loop, every) })
	}
	wg.Go(func() { m.lookout(ctx) })
	wg.Wait()
	return nil
}

func (m *Manager) loop(ctx context.Context, loop Loop, every time.Duration) {
	log := m.cfg.Log.With(zap.String("loop", string(loop)))
	timer := time.NewTimer(0)
	defer timer.Stop()
	var told told
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.woken[loop]:
		case <-timer.C:
		}
		result, err := m.RunOnce(ctx, loop)
		if ctx.Err() != nil {
			return
		}
		told.report(log, result, err)
		timer.Reset(every + rand.N(every/10+1)) // so that two instances drift apart
	}
}

// ages are what of an error's text grows without saying anything new.
var ages = regexp.MustCompile(`query age [^)]*`)

// told is what a loop has logged of its rounds.
type told struct {
	failing bool
	unacted string
}

// report logs what changed: each action done, and what is refused or fails when it is first seen or says something new.
func (t *told) report(log *zap.Logger, r Result, err error) {
	for _, a := range r.Done {
		log.Info("partition action done", a.fields()...)
	}
	for _, b := range r.Refused {
		if b.news {
			log.Warn("partition stays", zap.String("table", b.Action.Schema+"."+b.Action.Table),
				zap.String("partition", b.Action.Partition), zap.String("reason", b.Blocked.Reason), zap.String("detail", b.Blocked.Detail))
		}
	}
	for _, f := range r.failed {
		if f.news {
			log.Error("partition round failed", append(f.action.fields(), zap.Error(f.err))...)
		}
	}
	unacted := errors.Join(r.unacted...)
	if err != nil && len(r.unacted)+len(r.failed) == 0 {
		unacted = err // of the round before any table
	}
	text := ""
	if unacted != nil {
		text = ages.ReplaceAllString(unacted.Error(), "")
	}
	if text != "" && text != t.unacted {
		log.Error("partition round failed", zap.Error(unacted))
	}
	if err == nil && t.failing {
		log.Info("partition rounds succeed again")
	}
	t.failing, t.unacted = err != nil, text
}

// Result is what one round did.
type Result struct {
	Loop Loop
	// Done lists the actions that were carried out.
	Done []Action
	// Refused lists those that a guard refused.
	Refused []Refusal
	// Skipped is set where another instance was at work in this loop: the round ended quietly.
	Skipped bool

	failed  []failure
	unacted []error   // what kept tables from even trying an action
	at      time.Time // of the last look, by a clock that was in order since the last round
	doubt   bool      // a table found the clock to be in doubt
}

// failure is an action that failed; news says that it did not fail so before.
type failure struct {
	action Action
	err    error
	news   bool
}

// Refusal is an action that a guard refused.
type Refusal struct {
	Action  Action   `json:"action"`
	Blocked *Blocked `json:"blocked"`

	news bool // it was not refused so before
}

// RunOnce does one round of a loop over all policies. A table that fails does not keep the others from their turn; the
// errors come back joined, each naming its table.
func (m *Manager) RunOnce(ctx context.Context, loop Loop) (Result, error) {
	result := Result{Loop: loop}
	policies, bad, err := allPolicies(ctx, m.cfg.Pool, m.cfg.Schema)
	if err != nil {
		m.observeNone(loop, err)
		return result, err
	}
	m.forget(policies, bad)
	var faults []error
	for _, b := range bad {
		m.observeFault(b.policy(), loop, b, b)
		faults, result.unacted = append(faults, b), append(result.unacted, b)
	}
	for _, p := range policies {
		err := m.keep(ctx, p, loop, &result)
		if err != nil {
			faults = append(faults, err)
		}
		if ctx.Err() != nil {
			return result, errors.Join(faults...)
		}
	}
	if loop == RetireLoop && !result.doubt && !result.at.IsZero() {
		if err := m.alive(ctx, result.at); err != nil {
			faults = append(faults, err)
		}
	}
	return result, errors.Join(faults...)
}

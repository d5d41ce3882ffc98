package bluegreen

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// Side is one of the two tables of a pair.
type Side string

// The sides.
const (
	Blue  Side = "blue"  // the table that was there before Init
	Green Side = "green" // the partitioned one
)

func (s Side) other() Side {
	if s == Blue {
		return Green
	}
	return Blue
}

// suffix is what the passive side's names end with.
func (s Side) suffix() string {
	if s == Blue {
		return "_old"
	}
	return "_new"
}

// Config is what a Migration needs. Zero durations and counts take the defaults named here.
type Config struct {
	// Pool connects with the rights of the tables' owner, and not through a transaction pooler. It has 3 connections or more.
	Pool *pgxpool.Pool
	// Schema holds partition_policy, and this package's own tables while a migration is under way.
	Schema string
	// Log is written on changes of state. Optional.
	Log *zap.Logger

	// LockTimeout bounds one try to get the locks of a swap, or of a trigger: 200 ms.
	LockTimeout time.Duration
	// Budget bounds the time for which the tries of one swap, and the swap itself, hold up others, all together: 1 s.
	Budget time.Duration
	// Tail is the most entries of the log that a swap drains under its locks: 1,000.
	Tail int
	// Batch is the number of log entries that one transaction drains: 5,000.
	Batch int
	// CopyPages is the number of pages of the active side that one transaction copies: 2,048, which is 16 MiB.
	CopyPages int
	// Step, for tests, is called at each point at which a process may die, with its name.
	Step func(point string)
}

func (c Config) withDefaults() Config {
	if c.LockTimeout <= 0 {
		c.LockTimeout = 200 * time.Millisecond
	}
	if c.Budget <= 0 {
		c.Budget = time.Second
	}
	if c.Tail <= 0 {
		c.Tail = 1000
	}
	if c.Batch <= 0 {
		c.Batch = 5000
	}
	if c.CopyPages <= 0 {
		c.CopyPages = 2048
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	return c
}

// Migration is the one migration of a schema. Its methods are the commands; each is safe to be killed and called again, and
// one at a time has the migration's advisory lock.
type Migration struct {
	cfg Config
}

const minConns = 3

// New returns the migration; nothing is read or written before a method is called.
func New(cfg Config) (*Migration, error) {
	if cfg.Pool == nil || cfg.Schema == "" {
		return nil, errors.New("blue/green: a pool and a schema are needed")
	}
	if n := cfg.Pool.Config().MaxConns; n < minConns {
		return nil, fmt.Errorf("blue/green: a pool of %d connections: %d are needed, for the work, for partman's, and to look who is in the way (pool_max_conns)", n, minConns)
	}
	return &Migration{cfg: cfg.withDefaults()}, nil
}

// The refusals that callers tell apart.
var (
	// ErrNone is returned where no migration is under way.
	ErrNone = errors.New("no blue/green migration is under way; begin one with plenumctl bluegreen init")
	// ErrBusy is returned where another process works on the migration.
	ErrBusy = errors.New("another process works on this migration")
)

// A Pair is the two sides of one table, as state.go reads it.
type Pair struct {
	N       int    // the number of the pair, from 1
	Schema  string // of both sides
	Name    string // of the active side; the passive one's is passiveName
	Key     string // the column that green is partitioned by
	KeyType string // its type
	ID      string // the column that tells rows apart; the log holds it and the key
	IDType  string // its type, as format_type writes it with its schema

	Blue, Green uint32 // OIDs
	Active      Side

	// Low and High are green's scope: rows of blue with Low <= key < High are in green, all others stay in blue alone.
	Low, High time.Time

	captured bool // Init is complete
	parted   bool // the active side is partitioned

	// strict is set while a swap to green drains what came since it has looked at the findings.
	strict bool

	// Cursor is the copy's; it belongs to the active side.
	Cursor Cursor
	// Columns are those that are written, in the table's order: all but generated ones.
	Columns []string
	// Fixed are the columns that no update of a row on the passive side changes: the key and the id, by which both sides' rows are known, identity
	// columns that may not be written, and what unique keys are made of, since rows that exchange such values would be in each other's way.
	Fixed []string
	// Settable are the columns that an update of a row on the passive side may write.
	Settable []string
}

// Cursor is how far the copy has come.
type Cursor struct {
	Relation uint32 // the leaf, or the table itself; 0 before the first
	File     uint32 // pg_relation_filenode of it when its copy began: another one means that it was rewritten
	Page     int64  // the next page
	Rows     int64  // copied so far, by all batches
	Done     bool
}

func (p Pair) oid(s Side) uint32 {
	if s == Blue {
		return p.Blue
	}
	return p.Green
}

// name is what the side's table is called now.
func (p Pair) name(s Side) string {
	if s == p.Active {
		return p.Name
	}
	return passiveName(p.Name, s)
}

// table is the side's table, quoted.
func (p Pair) table(s Side) string { return pgx.Identifier{p.Schema, p.name(s)}.Sanitize() }

const maxName = 63 // bytes of an identifier

// passiveName is NAME_new or NAME_old.
func passiveName(name string, s Side) string { return cutName(name, s.suffix()) }

// cutName cuts a name so that it fits with the end.
func cutName(name, end string) string {
	n := min(len(name), maxName-len(end))
	for n > 0 && n < len(name) && !utf8.RuneStart(name[n]) {
		n--
	}
	return name[:n] + end
}

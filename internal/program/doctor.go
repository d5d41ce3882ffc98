package program

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"plenum/pkg/store"
)

// An Ailment is something that nothing mends by itself.
type Ailment struct {
	Check   string `json:"check"`
	Subject string `json:"subject"` // the object, such as a client id
	Message string `json:"message"`
	Do      string `json:"do"` // a command, or what else to do
}

// checkups are the doctor's checks. One is a function; it finds nothing where all is well.
var checkups = []struct {
	name string
	find func(context.Context, *App) ([]Ailment, error)
}{
	{"sessions", findOrphans},
	{"sync", findSetAside},
	{"feed", findConsumers},
	{"plans", findSlowPlans},
}

// Doctor makes every check, and for the time of sample looks for sessions that wait for locks; 0 looks for none. One that fails
// stops none of the others; the error joins theirs. text is what the look at the locks has seen and is no finding.
func Doctor(ctx context.Context, a *App, sample time.Duration) (all []Ailment, text string, err error) {
	if err := checkTool(ctx, a, false); err != nil {
		return nil, "", err
	}
	all = []Ailment{}
	var errs []error
	for _, c := range checkups {
		found, err := checkUp(ctx, a, c.find)
		if err != nil {
			errs = append(errs, fmt.Errorf("check %s: %w", c.name, err))
		}
		for _, f := range found {
			f.Check = c.name
			all = append(all, f)
		}
	}
	if sample > 0 {
		watch, err := watchLocks(ctx, a.owner, sample)
		if err != nil {
			errs = append(errs, fmt.Errorf("check locks: %w", err))
		} else {
			var found []Ailment
			found, text = watch.ailments()
			for _, f := range found {
				f.Check = "locks"
				all = append(all, f)
			}
		}
	}
	return all, text, errors.Join(errs...)
}

// checkPatience bounds one check, which may wait for somebody's lock on a whole table.
const checkPatience = 5 * time.Second

// checkUp makes one check. That it had to wait too long is a finding of its own.
func checkUp(ctx context.Context, a *App, find func(context.Context, *App) ([]Ailment, error)) ([]Ailment, error) {
	looking, done := context.WithTimeout(ctx, checkPatience)
	defer done()
	found, err := find(looking, a)
	if err != nil && ctx.Err() == nil && (isTimeout(err) || sqlCode(err) == "55P03") {
		return []Ailment{{
			Message: fmt.Sprintf("cannot look: %v", err),
			Do:      "usually somebody holds a lock on a whole table: see the locks below, and ask again when it is gone",
		}}, nil
	}
	return found, err
}

// setAsideAilment is a ledger line that was given up.
func setAsideAilment(l store.SetAsideLine) Ailment {
	return Ailment{
		Subject: fmt.Sprint("batch ", l.BatchID),
		Message: fmt.Sprintf("batch %d of %s is set aside since %s: it counts %d rows, and %d are there", l.BatchID, l.Day.Format(time.DateOnly),
			l.Since.UTC().Format(time.RFC3339), l.Rows, l.Found),
		Do: fmt.Sprintf("find out who changed rows, then plenumctl sync resolve %d --dry-run", l.BatchID),
	}
}

// findOrphans finds sessions at the broker that nobody will read again.
func findOrphans(ctx context.Context, a *App) ([]Ailment, error) {
	sessions, err := store.NewSessions(a.owner).List(ctx)
	if err != nil {
		return nil, err
	}
	var found []Ailment
	for _, s := range sessions {
		if SessionUse(a.Settings, s) == SessionOrphaned {
			found = append(found, Ailment{
				Subject: s.ClientID,
				Message: s.ClientID + " is not configured and no process holds it: its session at the broker still queues messages",
				Do:      "plenumctl sessions drain " + shellWord(s.ClientID),
			})
		}
	}
	return found, nil
}

// shellWord is a word as a POSIX shell reads it.
func shellWord(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !strings.ContainsRune(plainRunes, r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-"

package endtoend

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
)

// publisher is a plenumctl simulate; its record of PUBACKs is what must be found in the feed.
type publisher struct {
	t      *testing.T
	cmd    *exec.Cmd
	record string
	out    *strings.Builder
}

// simulate starts a publisher with further flags.
func (s *system) simulate(flags ...string) *publisher {
	s.t.Helper()
	p := &publisher{t: s.t, record: filepath.Join(s.t.TempDir(), "record"), out: &strings.Builder{}}
	p.cmd = exec.Command(filepath.Join(bin, "plenumctl"), append([]string{"simulate", "--broker", s.broker.URL(), "--record", p.record}, flags...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

func (p *publisher) wait() {
	p.t.Helper()
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("simulate: %v\n%s", err, p.out)
	}
}

// acknowledged returns the readings that the broker has taken, as "device seq".
func (p *publisher) acknowledged() []string {
	p.t.Helper()
	b, err := os.ReadFile(p.record)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // the publisher has just been started
		p.t.Fatal(err)
	}
	return strings.Fields(strings.ReplaceAll(string(b), " ", "/"))
}

// await waits until n readings are acknowledged.
func (p *publisher) await(n int) {
	p.t.Helper()
	devtest.Eventually(p.t, func() error {
		if got := len(p.acknowledged()); got < n {
			return fmt.Errorf("%d readings acknowledged of %d", got, n)
		}
		return nil
	})
}

// matches reads until every acknowledged reading of the publishers is there, and checks that each came once
// and that nothing else came.
func (r *reader) matches(publishers ...*publisher) {
	r.t.Helper()
	want := map[string]bool{}
	for _, p := range publishers {
		for _, reading := range p.acknowledged() {
			want[reading] = true
		}
	}
	r.readUntil(len(want))
	r.readOnce()
	r.once()
	for _, row := range r.rows {
		if row.Seq == nil {
			r.t.Fatalf("row %d has no seq", row.ID)
		}
		reading := fmt.Sprintf("%s/%d", row.DeviceID, *row.Seq)
		if !want[reading] {
			r.t.Fatalf("reading %s came and was not acknowledged, or came twice", reading)
		}
		delete(want, reading)
	}
	if len(want) > 0 {
		r.t.Fatalf("%d acknowledged readings are missing, for instance %s", len(want), firstKey(want))
	}
}

func firstKey(m map[string]bool) string {
	for k := range m {
		return k
	}
	return ""
}

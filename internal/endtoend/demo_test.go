package endtoend

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

var (
	processedCount = regexp.MustCompile(`processed (\d+)`)
	serverAddress  = regexp.MustCompile(`(?m)^(PostgreSQL|MQTT|HTTP) +\S*?(127\.0\.0\.1:\d+)`)
)

// TestDemo runs the demo twice on one directory: it prints its addresses, processed rows grow, Ctrl-C ends it with
// exit code 0 and nothing left listening, and the second run has the first one's rows.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var firstRow string
	for run := range 2 {
		var out lockedBuffer
		cmd := exec.Command(filepath.Join(bin, "plenumctl"), "demo", "--dir", dir, "--devices", "5", "--rate", "200", "--http.listen", "127.0.0.1:0")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		var counts []int
		devtest.Eventually(t, func() error {
			counts = counts[:0]
			for _, m := range processedCount.FindAllStringSubmatch(out.String(), -1) {
				n, _ := strconv.Atoi(m[1])
				counts = append(counts, n)
			}
			if len(counts) < 3 || counts[len(counts)-1] <= counts[len(counts)-2] {
				return fmt.Errorf("run %d: processed rows do not grow: %v\n%s", run, counts, out.String())
			}
			return nil
		})
		second := exec.Command(filepath.Join(bin, "plenumctl"), "demo", "--dir", dir, "--http.listen", "127.0.0.1:0")
		if text, _ := second.CombinedOutput(); second.ProcessState.ExitCode() != 4 || !strings.Contains(string(text), fmt.Sprint("process ", cmd.Process.Pid)) {
			t.Errorf("a second demo on the directory exits %d: %s", second.ProcessState.ExitCode(), text)
		}
		addresses := serverAddress.FindAllStringSubmatch(out.String(), -1)
		if len(addresses) != 3 {
			t.Fatalf("the demo prints %d addresses:\n%s", len(addresses), out.String())
		}
		code, body, _, err := get("http://" + addresses[2][2] + "/api/v1/feed/demo?limit=1&wait=5s")
		row, _, _ := strings.Cut(body, "\n")
		if err != nil || code != 200 || !strings.Contains(row, `"device_id":"cmp-`) || (run == 1 && row != firstRow) {
			t.Errorf("run %d: the feed on the demo's address answers %d %q, %v; the first run's first row is %q", run, code, row, err, firstRow)
		}
		firstRow = row
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("run %d: %v\n%s", run, err, out.String())
		}
		for _, a := range addresses {
			if c, err := net.DialTimeout("tcp", a[2], 5*time.Second); err == nil {
				_ = c.Close()
				t.Errorf("%s still listens on %s", a[1], a[2])
			}
		}
	}
}

// lockedBuffer is a buffer that may be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

package bench

import (
	"context"
	"io"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"plenum/internal/program"
)

// profileRows is how many rows BenchmarkIngest stores, a few seconds' worth.
const profileRows = 150_000

// BenchmarkIngest runs the ingest daemon in this process, from a session that holds all its messages, and writes the CPU profile of
// just that to -profile. Its CPU time an operation is a row's, start and stop included.
func BenchmarkIngest(b *testing.B) {
	ctx, cancel := context.WithTimeout(b.Context(), hangLimit)
	defer cancel()
	h := newHouse(ctx, b)
	d := h.database("profile")
	for range b.N {
		h.idle("ingest", d, ingestEnv(h, d, "plenum", loadPrefix)...)
		h.check(readings{prefix: loadPrefix, n: profileRows}.publish(ctx, h.broker.URL()))
		before := processTime(b)
		h.profiled(func() { h.inProcess(d, profileRows) })
		b.ReportMetric(float64((processTime(b)-before).Nanoseconds())/profileRows, "cpu-ns/row")
		d.exec("truncate telemetry, telemetry_batch")
	}
	d.drop()
}

// profiled writes the CPU profile of work to -profile, if that is given.
func (h *house) profiled(work func()) {
	h.tb.Helper()
	if *profile == "" {
		work()
		return
	}
	f, err := os.Create(*profile)
	h.check(err)
	h.check(pprof.StartCPUProfile(f))
	work()
	pprof.StopCPUProfile()
	h.check(f.Close())
}

// inProcess runs the daemon until it has stored the rows.
func (h *house) inProcess(d *database, rows int) {
	h.tb.Helper()
	daemon := program.Daemon{Name: "ingest", Listen: "127.0.0.1:0", Validate: program.Settings.ValidateIngest, Work: program.Ingest}
	env := map[string]string{}
	for _, setting := range ingestEnv(h, d, "plenum", loadPrefix) {
		key, value, _ := strings.Cut(setting, "=")
		env[key] = value
	}
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	var failed error
	var running sync.WaitGroup
	running.Go(func() {
		failed = daemon.Run(ctx, nil, func(key string) string { return env[key] }, io.Discard, io.Discard)
	})
	d.await(ledgerRows, rows)
	stop()
	running.Wait()
	h.check(failed)
}

func processTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package mqtt_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// BenchmarkReceive is the processor time that receiving and acknowledging one QoS 1 message of 250 bytes takes in this process.
// The publisher is another one.
func BenchmarkReceive(b *testing.B) {
	broker := devtest.Mosquitto(b, "max_inflight_messages 20000", "max_queued_messages 0")
	var received atomic.Int64
	all := make(chan struct{})
	want := int64(b.N)
	start(b, config(b, broker.URL()), func(d mqtt.Delivery) {
		d.Receipt.Done()
		if received.Add(1) == want {
			close(all)
		}
	})

	payload := bytes.Repeat([]byte("x"), 249)
	var lines bytes.Buffer
	for range b.N {
		lines.Write(payload)
		lines.WriteByte('\n')
	}
	host, port := hostPort(b, broker.URL())
	publish := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", "telemetry/cmp-00001", "-l")
	publish.Stdin = &lines
	b.ResetTimer()
	before := cpu(b)
	if out, err := publish.CombinedOutput(); err != nil {
		b.Fatal(fmt.Errorf("%w: %s", err, out))
	}
	<-all
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
}

// cpu is this process's user and system time in nanoseconds.
func cpu(tb testing.TB) int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

package mqtt_test

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/mqtt"
)

// BenchmarkReceive is the processor time that receiving and acknowledging one QoS 1 message of 250 bytes takes in this
// process. They wait in the session, so that the broker hands them out as fast as it can.
func BenchmarkReceive(b *testing.B) {
	broker := devtest.Mosquitto(b, "max_queued_bytes 0", "log_type error")
	c := config(b, broker.URL())
	start(b, c, func(mqtt.Delivery) {}).stop(b)
	payload := strings.Repeat("x", 250)
	for left := b.N; left > 0; {
		n := min(left, 50_000) // mosquitto_pub -l stops early when its packet identifiers have wrapped
		left -= n
		batch := make([]string, n)
		for i := range batch {
			batch[i] = payload
		}
		publish(b, broker.URL(), "telemetry/cmp-00001", 1, batch...)
	}

	var received atomic.Int64
	all := make(chan struct{})
	want := int64(b.N)
	before := cpu(b)
	b.ResetTimer()
	launch(b, c, func(d mqtt.Delivery) {
		d.Receipt.Done()
		if received.Add(1) == want {
			close(all)
		}
	})
	<-all
	b.StopTimer()
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

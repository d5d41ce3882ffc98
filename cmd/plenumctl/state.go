package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"plenum/internal/program"
)

// state is the demo's, as its own metrics tell it.
type state struct{ connected, received, stored, quarantined, processed, lag, days float64 }

func readState(g prometheus.Gatherer) state {
	families, err := g.Gather()
	if err != nil {
		return state{}
	}
	value := func(name, label string) float64 {
		for _, f := range families {
			if f.GetName() == name {
				return sum(f, label)
			}
		}
		return 0
	}
	return state{
		connected:   value("plenum_mqtt_connected", ""),
		received:    value("plenum_mqtt_messages_received_total", ""),
		stored:      value("plenum_ingest_rows_total", "stored"),
		quarantined: value("plenum_ingest_rows_total", "quarantined"),
		processed:   value("plenum_sync_rows_processed_total", ""),
		lag:         value("plenum_sync_lag_seconds", ""),
		days:        value("plenum_partitions", "telemetry"),
	}
}

// sum adds the family's counters and gauges that have a label of this value; "" takes all.
func sum(f *dto.MetricFamily, label string) (total float64) {
	for _, m := range f.GetMetric() {
		matches := label == ""
		for _, l := range m.GetLabel() {
			matches = matches || l.GetValue() == label
		}
		if matches {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return total
}

// showState prints the state until ctx ends: one line rewritten on a terminal, a line every few seconds elsewhere.
func showState(ctx context.Context, out io.Writer, g prometheus.Gatherer) {
	every, end := 5*time.Second, "\n"
	if program.IsTerminal(out) {
		every, end = 500*time.Millisecond, "\x1b[K\r"
		defer fmt.Fprintln(out)
	}
	for ; ctx.Err() == nil; wait(ctx, every) {
		if s := readState(g); s.connected > 0 {
			quarantined := ""
			if s.quarantined > 0 {
				quarantined = fmt.Sprintf("quarantined %.0f  ", s.quarantined)
			}
			fmt.Fprintf(out, "received %.0f  stored %.0f  %sprocessed %.0f  lag %.1f s  days %.0f%s",
				s.received, s.stored, quarantined, s.processed, s.lag, s.days, end)
		}
	}
}

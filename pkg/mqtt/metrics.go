package mqtt

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	received   prometheus.Counter
	stalled    prometheus.Counter
	ackDelay   prometheus.Histogram
	reconnects *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, c *Client) (*metrics, error) {
	m := &metrics{
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plenum_mqtt_messages_received_total",
			Help: "MQTT messages handed over, redelivered ones included.",
		}),
		stalled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plenum_mqtt_paused_total",
			Help: "Times that reading from the broker stopped because a connection's window was full.",
		}),
		ackDelay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plenum_ingest_ack_delay_seconds",
			Help: "Time from receipt of a message to its acknowledgement, of the oldest message in each write to the broker.",
			// 1 ms to 65 s
			Buckets:                        prometheus.ExponentialBuckets(0.001, 2, 17),
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 100,
		}),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_mqtt_reconnects_total",
			Help: "Connections, and attempts to connect, that ended and were tried again, by reason.",
		}, []string{"reason"}),
	}
	for _, r := range reasons {
		m.reconnects.WithLabelValues(string(r))
	}
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plenum_mqtt_connected",
		Help: "MQTT connections that are up with every subscription granted.",
	}, func() float64 { return float64(c.connected()) })
	unacked := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plenum_ingest_unacked_messages",
		Help: "MQTT messages read and not acknowledged; of ended connections, those not yet stored.",
	}, func() float64 { return float64(c.Unacked()) })

	stalled := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plenum_mqtt_stalled_connections",
		Help: "MQTT connections whose oldest message has held up acknowledgements for longer than mqtt.stall_after.",
	}, func() float64 { return float64(c.stalled()) })
	oldest := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plenum_ingest_oldest_unacked_seconds",
		Help: "Age of the oldest MQTT message that is not acknowledged or, of ended connections, not yet stored; 0 if there is none.",
	}, func() float64 { return c.oldestUnacked().Seconds() })

	var faults []error
	for _, collector := range []prometheus.Collector{m.received, m.stalled, m.ackDelay, m.reconnects, connected, unacked, stalled, oldest} {
		if err := reg.Register(collector); err != nil {
			faults = append(faults, fmt.Errorf("register MQTT metrics: %w", err))
		}
	}
	return m, errors.Join(faults...)
}

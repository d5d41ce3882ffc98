package partman

import "github.com/prometheus/client_golang/prometheus"

// metrics have the label table, whose values are the tables that have a policy.
type metrics struct {
	runway     *prometheus.GaugeVec
	partitions *prometheus.GaugeVec
	actions    *prometheus.CounterVec
	drift      *prometheus.GaugeVec
	blocked    *prometheus.GaugeVec
	waiting    *prometheus.GaugeVec
	paused     *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		runway:     gauge("plenum_partition_runway_seconds", "Time until inserts fail for want of a partition.", "table"),
		partitions: gauge("plenum_partitions", "Attached partitions.", "table"),
		drift:      gauge("plenum_partition_index_drift", "Declared indexes that are missing, invalid or not attached.", "table"),
		blocked:    gauge("plenum_partition_retire_blocked", "Partitions past retention that the last round could not let go.", "table", "reason"),
		paused:     gauge("plenum_partition_retention_paused_seconds", "For how long retiring has been paused; 0 where it is not.", "table"),
		waiting: gauge("plenum_partition_blocker_query_age_seconds",
			"Age of the oldest query that holds up an action; 0 where none does.", "table", "action"),
		actions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plenum_partition_actions_total",
			Help: "Actions by what they do and how they ended: done, refused or failed.",
		}, []string{"table", "action", "result"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.runway, m.partitions, m.drift, m.blocked, m.waiting, m.paused, m.actions} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) forget(table string) {
	label := prometheus.Labels{"table": table}
	for _, g := range []*prometheus.GaugeVec{m.runway, m.partitions, m.drift, m.blocked, m.waiting, m.paused} {
		g.DeletePartialMatch(label)
	}
	m.actions.DeletePartialMatch(label)
}

func (m *metrics) action(table string, k Kind, result string) {
	m.actions.WithLabelValues(table, string(k), result).Inc()
}

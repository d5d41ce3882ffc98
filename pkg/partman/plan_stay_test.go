package partman_test

import "plenum/pkg/partman"

// stayCases are of days that are due and stay, or wait.
func stayCases() []golden {
	held := snapshot(days("2026-11-13", 12)...)
	held.Record.Held = []partman.Hold{{From: day("2026-11-13"), To: day("2026-11-14"), By: "anna", Reason: "case 17", Since: day("2026-11-12")}}
	counting := snapshot(days("2026-11-15", 10)...)
	counting.Record.Held = []partman.Hold{{From: day("2026-11-14"), To: day("2026-11-15"), By: "partman", Since: day("2026-11-22"), Rows: &partman.RowCount{
		Table: "telemetry", Archive: "telemetry_archive", Schema: "public", Partition: "telemetry_p20261114", Before: 7,
	}}}
	clock := snapshot(days("2026-11-13", 12)...)
	clock.Record.LastRun = at("2026-11-19T09:00:00Z")
	unconfirmed := snapshot(days("2026-11-14", 11)...)
	unconfirmed.Record = partman.Record{Schema: "plenum", Pending: &partman.Retention{Step: partman.Day, Retention: 2, Expired: partman.ExpiredDrop}}
	large := snapshot(days("2026-11-13", 12)...)
	large.MaxRetireBytes, large.Partitions[0].Bytes = 1000, 1001
	paused := snapshot(days("2026-11-13", 12)...)
	paused.Record.Paused = &partman.Paused{Since: day("2026-11-12"), By: "bluegreen", Reason: "it is passive"}
	paused.Detached = []partman.Detached{{Schema: "public", Name: "telemetry_p20261101", OID: 7, From: day("2026-11-01"), To: day("2026-11-02"), At: day("2026-11-10")}}
	paused.Record.Held = counting.Record.Held
	paused.Partitions[7].Indexes = paused.Partitions[7].Indexes[:2]
	paused.Partitions = paused.Partitions[:len(paused.Partitions)-1]
	return []golden{
		{"held", live(), at("2026-11-22T10:00:00Z"), held},
		{"counting", live(), at("2026-11-22T10:00:00Z"), counting},
		{"clock", live(), at("2026-11-22T10:00:00Z"), clock},
		{"unconfirmed", live(), at("2026-11-22T10:00:00Z"), unconfirmed},
		{"paused", dropping(), at("2026-11-22T10:00:00Z"), paused},
		{"large", live(), at("2026-11-22T10:00:00Z"), large},
	}
}

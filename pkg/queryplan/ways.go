package queryplan

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A Way is one index that a scan goes by, or that it goes by none.
type Way struct {
	Schema, Relation string
	// Index and what the catalog has of it; empty for a scan without one.
	Index      string
	Column     string // that leads: or the text of an expression
	Definition string // from its method on, as create index takes it after using
	Partial    bool
	BRIN       bool
	// Found says that rows are found by a condition on what leads; else the index is walked along.
	Found bool
}

// Ways lists how the scans of a plan that was made in tx go, in the order of the tree.
func Ways(ctx context.Context, tx pgx.Tx, p Plan) (list []Way, err error) {
	scans := p.Scans()
	if len(scans) == 0 {
		return nil, nil
	}
	catalog, err := readCatalog(ctx, tx, scans)
	if err != nil {
		return nil, err
	}
	for _, s := range scans {
		r := catalog[name{s.Schema, s.Relation}]
		if len(s.Conditions) == 0 {
			list = append(list, Way{Schema: s.Schema, Relation: s.Relation})
		}
		for _, c := range s.Conditions {
			w := Way{Schema: s.Schema, Relation: s.Relation, Index: c.Index}
			if n := slices.IndexFunc(r.indexes, func(i index) bool { return i.Name == c.Index }); n >= 0 {
				i := r.indexes[n]
				w.Column, w.Definition, w.Partial, w.BRIN = i.Leading, i.Definition, i.Partial, i.Method == "brin"
				w.Found = c.Cond != "" && (i.Expression || mentions(c.Cond, i.Leading))
			}
			list = append(list, w)
		}
	}
	return list, nil
}

package partman

// Moment tells where in an action a Point is.
type Moment string

// The moments of which Config.Step hears.
const (
	AfterStatement Moment = "statement" // a statement or hook has succeeded
	BeforeCommit   Moment = "commit"    // all of a transaction's have, and nothing is committed yet
	AfterCommit    Moment = "committed"
)

// Point is a place in the work of an action at which a process may die.
type Point struct {
	Action Action
	// Statement is the index in Action.Statements; of a commit, that of the transaction's last.
	Statement int
	Moment    Moment
}

// Points lists every point of an action, in the order in which they come. Tests kill the process at each.
func (a Action) Points() []Point {
	var points []Point
	for n, s := range a.Statements {
		points = append(points, Point{a, n, AfterStatement})
		if last := n+1 == len(a.Statements) || a.Statements[n+1].Tx != s.Tx; s.Tx != 0 && last {
			points = append(points, Point{a, n, BeforeCommit}, Point{a, n, AfterCommit})
		}
	}
	return points
}

package architecture

import "go/ast"

var forbidden = []string{"os.Exit", "os.Getenv", "os.LookupEnv", "os.Environ", "log.Fatal", "log.Fatalf", "log.Panic"}

// mayCall are the mains, what they share, and what wraps a test binary's main.
var mayCall = map[string]bool{
	"plenum/cmd/ingest": true, "plenum/cmd/syncjob": true, "plenum/cmd/plenumctl": true,
	"plenum/internal/program": true, "plenum/internal/devenv/devtest": true,
	"plenum/deploy/docker/readyz": true,
}

// selectors returns each package.Name that the file refers to.
func selectors(f *ast.File) []string {
	var all []string
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Obj == nil {
				all = append(all, x.Name+"."+s.Sel.Name)
			}
		}
		return true
	})
	return all
}

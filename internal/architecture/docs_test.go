package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the repository, seen from this package.
const root = "../.."

var testName = regexp.MustCompile(`\b(Test|Benchmark|Fuzz|Example)[A-Z]\w*`)

// TestDocsNameTests: a test that the documents name is there. A claim whose proof was renamed or dropped is none.
func TestDocsNameTests(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, filepath.Join(root, "ARCHITECTURE.md"))
	there := testFunctions(t)
	named := 0
	for _, file := range documents {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := testName.FindAllString(string(text), -1)
		named += len(names)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !there[name] {
				t.Errorf("%s names %s, which no package has", filepath.Base(file), name)
			}
		}
	}
	if named == 0 {
		t.Error("no document names a test")
	}
}

// testFunctions are the tests, benchmarks, fuzzers and examples of all packages.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	there := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(d.Name(), "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range f.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv == nil && testName.MatchString(function.Name.Name) {
				there[function.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return there
}

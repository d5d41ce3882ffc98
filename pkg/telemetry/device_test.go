package telemetry_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"plenum/pkg/telemetry"
)

func TestDevice(t *testing.T) {
	t.Parallel()
	c := telemetry.DefaultConfig()
	c.Topics = []string{"site/+/{device_id}/{kind}", "log/#", "telemetry/{device_id}", "telemetry/{device_id}/#"}
	d, err := telemetry.NewDecoder(c)
	if err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]string{
		"telemetry/cmp-1": "cmp-1", "telemetry/cmp-1/a/b": "cmp-1", "site/north/Gerät 7/fault": "Gerät 7",
		"telemetry/": "", "site/north//fault": "", "site/north/cmp-1/": "", // an empty level
		"log/cmp-1": "", "elsewhere": "", "": "", // named by none, matched by none
	} {
		got, ok := d.Device(topic)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q names %q, %v, want %q", topic, got, ok, want)
		}
	}
}

// What the decoder keeps of a topic tells whether it is all of it.
func TestTopicWhole(t *testing.T) {
	t.Parallel()
	d, err := telemetry.NewDecoder(telemetry.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, telemetry.MaxRejectTopicBytes, telemetry.MaxRejectTopicBytes + 1, 65535} {
		topic := strings.Repeat("ä", n)[:n]
		if n%2 == 1 {
			topic = topic[:n-1] + "x"
		}
		var b telemetry.Batch
		d.Decode(telemetry.Message{Topic: topic, Payload: []byte("{}")}, &b)
		if got, want := telemetry.TopicWhole(b.Rejects[0].Topic), n <= telemetry.MaxRejectTopicBytes; got != want {
			t.Errorf("of a topic of %d bytes %d are kept, whole: %v", n, len(b.Rejects[0].Topic), got)
		}
	}
}

// TestCodes finds each constant of type Code in the list.
func TestCodes(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "telemetry.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Code" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if n++; err != nil || !telemetry.Code(text).Known() {
			t.Errorf("%s is not among the codes: %v", spec.Names[0], err)
		}
		return true
	})
	all := telemetry.Codes()
	slices.Sort(all)
	if len(slices.Compact(all)) != n || telemetry.Code("no_code").Known() {
		t.Errorf("%d constants, %v", n, all)
	}
}

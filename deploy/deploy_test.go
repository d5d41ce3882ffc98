package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"plenum/internal/devenv/devtest"
)

func TestMain(m *testing.M) { devtest.Main(m) }

const (
	rulesFile = "prometheus/rules/plenum.yml"
	ruleTests = "prometheus/tests/*_test.yml"
)

// decode parses a file of this folder as YAML: a duplicate key, and one that the type doesn't have, is an error.
func decode(t *testing.T, file string, into any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// glob returns the files of a pattern, of which there is at least one.
func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no file %q: %v", pattern, err)
	}
	return files
}

func TestEveryYAMLFileParses(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{"*/*.y*ml", "*/*/*.y*ml", "*/*/*/*.y*ml"} {
		files = append(files, glob(t, pattern)...)
	}
	for _, file := range files {
		var content any
		decode(t, file, &content)
	}
}

func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v; it is in Debian's package prometheus: apt-get install --no-install-recommends prometheus", err)
	}
	for _, args := range [][]string{
		{"check", "rules", rulesFile},
		{"check", "config", "prometheus/prometheus.yml"},
		append([]string{"test", "rules"}, glob(t, ruleTests)...),
	} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			t.Parallel()
			out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput()
			if err != nil {
				t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
	}
}

type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func TestEachAlertSaysWhatToDo(t *testing.T) {
	t.Parallel()
	runbook := regexp.MustCompile(`^docs/operations\.md#[a-z]+(-[a-z]+)*$`)
	var file ruleFile
	decode(t, rulesFile, &file)
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if s := rule.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s: severity %q", rule.Alert, s)
			}
			if rule.For == "" {
				t.Errorf("%s: no for: one bad scrape would fire it", rule.Alert)
			}
			for _, key := range []string{"summary", "description"} {
				if rule.Annotations[key] == "" {
					t.Errorf("%s: no %s", rule.Alert, key)
				}
			}
			if url := rule.Annotations["runbook_url"]; !runbook.MatchString(url) {
				t.Errorf("%s: runbook_url %q", rule.Alert, url)
			}
		}
	}
}

// promtool tests what is in the test file; this, that every alert is, both ways.
func TestEachAlertIsTestedBothWays(t *testing.T) {
	t.Parallel()
	type tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, file := range glob(t, ruleTests) {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var list tests
		if err := yaml.Unmarshal(content, &list); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, test := range list.Tests {
			for _, check := range test.AlertRuleTest {
				if len(check.ExpAlerts) > 0 {
					fires[check.Alertname] = true
				} else {
					silent[check.Alertname] = true
				}
			}
		}
	}
	var file ruleFile
	decode(t, rulesFile, &file)
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if !fires[rule.Alert] || !silent[rule.Alert] {
				t.Errorf("%s: tested firing %t, tested silent %t", rule.Alert, fires[rule.Alert], silent[rule.Alert])
			}
		}
	}
}

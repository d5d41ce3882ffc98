package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Names returns the Plenum metrics (plenum_…) that the alert rules and the dashboards below dir, this folder, name in
// their expressions, each with the labels asked of it: sorted, without job and instance, which Prometheus adds. A
// histogram's name carries the suffix (_bucket, _sum, _count) it is asked by, so that each name begins lines of
// /metrics in the text format. The end-to-end test holds the answer against the daemons.
//
// It is an error if there is no expression in either place, or one that hides which metric it asks for.
func Names(dir string) (map[string][]string, error) {
	found := names{}
	rules, err := expressions(filepath.Join(dir, "prometheus", "rules", "*.yml"), ruleExpressions)
	if err != nil {
		return nil, err
	}
	panels, err := expressions(filepath.Join(dir, "grafana", "dashboards", "*.json"), dashboardExpressions)
	if err != nil {
		return nil, err
	}
	for _, expression := range slices.Concat(rules, panels) {
		if err := found.add(expression); err != nil {
			return nil, fmt.Errorf("expression %q: %w", expression, err)
		}
	}
	list := make(map[string][]string, len(found))
	for metric, labels := range found {
		delete(labels, "job")
		delete(labels, "instance")
		list[metric] = slices.Sorted(maps.Keys(labels))
	}
	return list, nil
}

// expressions applies extract to every file of a pattern.
func expressions(pattern string, extract func([]byte) ([]string, error)) ([]string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		list, err := extract(content)
		if err != nil {
			return nil, fmt.Errorf("read expressions of %q: %w", file, err)
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no expression in any file of %q", pattern)
	}
	return all, nil
}

// ruleExpressions are those of a Prometheus rule file.
func ruleExpressions(content []byte) ([]string, error) {
	var file struct {
		Groups []struct {
			Rules []struct {
				Expr string `yaml:"expr"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		return nil, err
	}
	var list []string
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if rule.Expr == "" {
				return nil, errors.New("a rule without expr")
			}
			list = append(list, rule.Expr)
		}
	}
	return list, nil
}

// dashboardExpressions are those of a Grafana dashboard: every expr, however deep its panel lies, and the definition of
// every variable.
func dashboardExpressions(content []byte) ([]string, error) {
	var document any
	if err := json.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	var list []string
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, child := range node {
				walk(child)
			}
		case map[string]any:
			for key, child := range node {
				if text, ok := child.(string); ok && (key == "expr" || key == "definition") {
					list = append(list, text)
				}
				walk(child)
			}
		}
	}
	walk(document)
	slices.Sort(list) // map order is random, errors should not be
	return list, nil
}

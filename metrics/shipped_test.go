// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/imgbackup/imgbackup/metrics"
)

const shipped = "../dist/"

// written are the names of all metrics that the program writes, with their labels.
func written(t *testing.T) map[string]map[string]bool {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(figures()); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]map[string]bool)
	for _, f := range families {
		labels := map[string]bool{"instance": true} // Prometheus' own
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels[l.GetName()] = true
			}
		}
		names[f.GetName()] = labels
	}
	return names
}

var (
	metricName = regexp.MustCompile(`\bimgbackup_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`(imgbackup_[a-z0-9_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+) *(?:=~|!~|!=|=)`)
	legend     = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)
)

// checkUses demands that expressions use metrics and labels that there are, and returns the
// metrics' names.
func checkUses(t *testing.T, where string, names map[string]map[string]bool, exprs ...string) (used []string) {
	t.Helper()
	for _, expr := range exprs {
		for _, name := range metricName.FindAllString(expr, -1) {
			if names[name] == nil {
				t.Errorf("%s: there is no metric %s", where, name)
			}
			used = append(used, name)
		}
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
				if !names[s[1]][l[1]] {
					t.Errorf("%s: %s has no label %s", where, s[1], l[1])
				}
			}
		}
	}
	return used
}

// TestDashboard: every metric and label that the dashboard shows is one that the program
// writes, and every metric is shown.
func TestDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(shipped + "imgbackup.dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Templating struct{ List []struct{ Query any } }
		Panels     []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, RefID, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil || d.UID == "" || len(d.Panels) < 10 {
		t.Fatalf("%v; %d panels", err, len(d.Panels))
	}
	names := written(t)
	var used, exprs []string
	ids := make(map[int]bool)
	for i, p := range d.Panels {
		refs := make(map[string]bool)
		for _, target := range p.Targets {
			if target.Expr == "" || refs[target.RefID] {
				t.Errorf("%s: %+v", p.Title, target)
			}
			refs[target.RefID] = true
			in := checkUses(t, p.Title, names, target.Expr)
			for _, l := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.ContainsFunc(in, func(name string) bool { return names[name][l[1]] }) {
					t.Errorf("%s: nothing has the label %s", p.Title, l[1])
				}
			}
			used, exprs = append(used, in...), append(exprs, target.Expr)
		}
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("%s: id %d, %d targets", p.Title, p.ID, len(p.Targets))
		}
		ids[p.ID] = true
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X+a.W > 24 || a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, q.Title)
			}
		}
	}
	for _, v := range d.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			checkUses(t, "variable", names, q["query"].(string))
		}
	}
	for name := range names {
		if !slices.Contains(used, name) {
			t.Errorf("%s is not shown", name)
		}
	}
	checkExprs(t, exprs)
}

// checkExprs lets Prometheus read expressions, as though they were rules.
func checkExprs(t *testing.T, exprs []string) {
	t.Helper()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for i, expr := range exprs {
		rules = append(rules, rule{fmt.Sprintf("expr:%d", i), expr})
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "exprs", "rules": rules}}}) // which is YAML
	path := filepath.Join(t.TempDir(), "exprs.yaml")
	if err := errors.Join(err, os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}

// TestAlertRules: Prometheus takes the rules, they do what their tests say, and each of them has
// a test in which it fires.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	rules, tests := shipped+"imgbackup.rules.yaml", shipped+"imgbackup.rules.test.yaml"
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	if used := checkUses(t, rules, written(t), string(text)); len(used) < 9 {
		t.Errorf("the rules use %v", used)
	}
	tried, err := os.ReadFile(tests)
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(text), -1)
	for _, a := range alerts {
		// In its one-line form a test has no alert: there it does not fire.
		fires := regexp.MustCompile(`\n        alertname: ` + a[1] + `\n        exp_alerts:\n`)
		if !fires.Match(tried) || !strings.Contains(string(tried), "alertname: "+a[1]+", exp_alerts: []") {
			t.Errorf("%s has no test in which it fires, and one in which it does not", a[1])
		}
	}
	promtool(t, "check", "rules", rules)
	promtool(t, "test", "rules", tests)
}

// TestPromtool: what the program writes is as Prometheus wants it.
func TestPromtool(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.prom")
	if err := metrics.Write(path, figures()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(string(text))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/imgbackup/imgbackup/metrics"
)

// figures have everything that there can be.
func figures() *metrics.Figures {
	at := time.UnixMilli(1_800_000_000_500)
	return &metrics.Figures{
		Version: "1.2", Made: at,
		Domains: []metrics.Domain{
			{Job: "nightly", Domain: `we"b`, Repository: "site1", Status: 1, Newest: at, Objective: 26 * time.Hour, Checkpoints: 3, StoredBytes: 1 << 40,
				Drilled: at, DrillPassed: true, Unusual: map[string]int{"quiet": 0, "rewritten": 2}},
			{Job: "nightly", Domain: "never", Repository: "site1", Status: 2},
		},
		Jobs: []metrics.Job{
			{Job: "nightly", Begun: at, Took: 90 * time.Second, Status: 3, LastGood: at, Next: at, Steps: map[string]time.Duration{"backup": time.Minute}},
			{Job: "new"},
		},
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.prom")
	f := figures()
	for range 2 { // the second replaces the first
		if err := metrics.Write(path, f); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	for _, want := range []string{
		`imgbackup_domain_newest_checkpoint_timestamp_seconds{backup_job="nightly",domain="we\"b",repository="site1"} 1.8000000005e+09`,
		`imgbackup_domain_objective_seconds{backup_job="nightly",domain="we\"b",repository="site1"} 93600`,
		`imgbackup_domain_unusual{backup_job="nightly",domain="we\"b",kind="rewritten",repository="site1"} 2`,
		`imgbackup_domain_status{backup_job="nightly",domain="never",repository="site1"} 2`,
		`imgbackup_job_last_run_status{backup_job="nightly"} 3`,
		`imgbackup_job_last_run_step_duration_seconds{backup_job="nightly",step="backup"} 60`,
	} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
	// What is not known is not there as a zero, which would be a time.
	for _, not := range []string{`newest_checkpoint_timestamp_seconds{backup_job="nightly",domain="never"`, `last_run_status{backup_job="new"}`} {
		if strings.Contains(string(text), not) {
			t.Errorf("there is %s", not)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v are left, %v", entries, err)
	}
	if err := metrics.Write(filepath.Join(filepath.Dir(path), "no", "x.prom"), f); err == nil {
		t.Error("a folder that is not there was written to")
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package metrics writes figures of jobs and domains as Prometheus reads them, for the
// textfile collector of its node exporter. Names and units follow its conventions: times
// are seconds since 1970, sizes bytes. What is not known is left out.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Domain is a domain of a job.
type Domain struct {
	Job, Domain, Repository string
	Status                  int // 0 good, 1 warning, 2 critical
	Newest                  time.Time
	Objective               time.Duration
	Checkpoints             int
	StoredBytes             int64
	Drilled                 time.Time
	DrillPassed             bool
	// Unusual is how many things of a kind the newest checkpoint has that are unlike its
	// domain's habit; each kind that is looked for is there, with 0 if there is none.
	Unusual map[string]int
}

// Job is a job and its newest run.
type Job struct {
	Job         string
	Begun       time.Time
	Took        time.Duration // 0: it has not ended
	Status      int           // its exit status
	Interrupted bool
	LastGood    time.Time
	Next        time.Time
	// Steps are how long kinds of steps took, together.
	Steps map[string]time.Duration
}

// Figures are all that is written.
type Figures struct {
	Version string
	Made    time.Time
	Domains []Domain
	Jobs    []Job
}

// Write writes them to a file, which appears whole.
func Write(path string, f *Figures) error {
	r := prometheus.NewRegistry()
	if err := r.Register(f); err != nil {
		return err
	}
	return prometheus.WriteToTextfile(path, r)
}

// Describe implements [prometheus.Collector]: which there are depends on what is known.
func (f *Figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (f *Figures) Collect(to chan<- prometheus.Metric) {
	c := collector{to}
	c.gauge("imgbackup_build_info", "The version that wrote these figures.", 1, labels{"version": f.Version})
	c.time("imgbackup_metrics_timestamp_seconds", "When these figures were written.", f.Made, nil)
	for _, d := range f.Domains {
		c.domain(d)
	}
	for _, j := range f.Jobs {
		c.job(j)
	}
}

type labels = prometheus.Labels

type collector struct{ to chan<- prometheus.Metric }

func (c collector) gauge(name, help string, value float64, l labels) {
	c.to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, l), prometheus.GaugeValue, value)
}

func (c collector) time(name, help string, t time.Time, l labels) {
	if !t.IsZero() {
		c.gauge(name, help, float64(t.UnixMilli())/1000, l)
	}
}

func (c collector) domain(d Domain) {
	// Prometheus gives the name job to something else.
	l := labels{"backup_job": d.Job, "domain": d.Domain, "repository": d.Repository}
	c.gauge("imgbackup_domain_status", "What imgbackup status says: 0 good, 1 warning, 2 critical.", float64(d.Status), l)
	c.time("imgbackup_domain_newest_checkpoint_timestamp_seconds", "When the newest checkpoint with data was made.", d.Newest, l)
	if d.Objective > 0 {
		c.gauge("imgbackup_domain_objective_seconds", "How old the newest checkpoint may be.", d.Objective.Seconds(), l)
	}
	c.gauge("imgbackup_domain_checkpoints", "How many checkpoints there are.", float64(d.Checkpoints), l)
	c.gauge("imgbackup_domain_stored_bytes", "What the checkpoints stored when they were made.", float64(d.StoredBytes), l)
	if !d.Drilled.IsZero() {
		c.time("imgbackup_domain_last_drill_timestamp_seconds", "When the newest drill began.", d.Drilled, l)
		c.gauge("imgbackup_domain_last_drill_passed", "Whether the newest drill passed.", truth(d.DrillPassed), l)
	}
	for kind, n := range d.Unusual {
		with := labels{"kind": kind}
		for k, v := range l {
			with[k] = v
		}
		c.gauge("imgbackup_domain_unusual", "How many findings the newest checkpoint has that are unlike the domain's habit.", float64(n), with)
	}
}

func (c collector) job(j Job) {
	l := labels{"backup_job": j.Job}
	c.time("imgbackup_job_next_run_timestamp_seconds", "When the job runs next.", j.Next, l)
	c.time("imgbackup_job_last_success_timestamp_seconds", "When the newest run began of which nothing failed.", j.LastGood, l)
	if j.Begun.IsZero() {
		return
	}
	c.time("imgbackup_job_last_run_timestamp_seconds", "When the newest run began.", j.Begun, l)
	c.gauge("imgbackup_job_last_run_status", "The exit status of the newest run.", float64(j.Status), l)
	c.gauge("imgbackup_job_last_run_interrupted", "Whether the newest run was cut off.", truth(j.Interrupted), l)
	if j.Took > 0 {
		c.gauge("imgbackup_job_last_run_duration_seconds", "How long the newest run took.", j.Took.Seconds(), l)
	}
	for step, took := range j.Steps {
		c.gauge("imgbackup_job_last_run_step_duration_seconds", "How long a kind of step of the newest run took, all of them together.",
			took.Seconds(), labels{"backup_job": j.Job, "step": step})
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/retention"
)

// Options say what a report is about.
type Options struct {
	Domains []string // sorted
	Now     time.Time
	Zone    *time.Location // of days
	Place   string         // of the repository, as a person names it
	Tool    string

	MaxAge  time.Duration   // of a domain's newest checkpoint; 0: three times what is usual
	Rules   retention.Rules // what forget would be given; none: nothing is said of it
	Unusual habit.Limits
}

// Report is what [Make] finds. Sizes are in bytes.
type Report struct {
	Format       string    `json:"format"` // imgbackup-report
	Version      int       `json:"version"`
	Made         time.Time `json:"made"`
	Zone         string    `json:"timezone"`
	Tool         string    `json:"tool,omitempty"`
	Place        string    `json:"place"`
	RepositoryID string    `json:"repository_id"`
	Verdict      Verdict   `json:"verdict"`
	Good         int       `json:"domains_good"`
	Warning      int       `json:"domains_warning"`
	Bad          int       `json:"domains_bad"`
	Checkpoints  int       `json:"checkpoints"`
	StoredBytes  int64     `json:"stored_bytes"` // that the checkpoints stored when they were made
	Domains      []*Domain `json:"domains"`
}

// Domain is one domain's life.
type Domain struct {
	Domain      string        `json:"domain"`
	UUID        string        `json:"domain_uuid,omitempty"`
	Hosts       []string      `json:"hosts"`
	Verdict     Verdict       `json:"verdict"`
	Newest      string        `json:"newest,omitempty"`
	NewestAge   int64         `json:"newest_age_seconds"`
	Interval    int64         `json:"usual_interval_seconds"` // between checkpoints; 0: too few
	Size        int64         `json:"virtual_size"`           // of the newest archive's disks
	StoredBytes int64         `json:"stored_bytes"`
	Growth      *Growth       `json:"growth,omitempty"`
	Retention   *Retention    `json:"retention,omitempty"`
	Drills      []Drill       `json:"drills"`
	Checkpoints []*Checkpoint `json:"checkpoints"` // oldest first
}

// Checkpoint is one of them.
type Checkpoint struct {
	Checkpoint  string    `json:"checkpoint"`
	UUID        string    `json:"uuid"`
	Parent      string    `json:"parent,omitempty"` // that it follows in the tree
	Lane        int       `json:"lane"`             // of its branch; 0: that of the first
	Created     time.Time `json:"created"`
	Kind        string    `json:"kind"`
	Tags        []string  `json:"tags,omitempty"`
	ChangeBytes int64     `json:"change_bytes"` // data and zeros of the disks' maps, of incrementals
	DataBytes   int64     `json:"data_bytes"`
	NewBytes    int64     `json:"new_bytes"` // of the data, what the repository did not have
	ZeroBytes   int64     `json:"zero_bytes"`
	StoredBytes int64     `json:"stored_bytes"` // what the new data takes, compressed
	LostBytes   int64     `json:"lost_bytes,omitempty"`
	Disks       []Disk    `json:"disks"`
	Drilled     string    `json:"drilled,omitempty"` // how its newest drill ended
	Doubt       string    `json:"doubt,omitempty"`   // why its time is not believed: rules neither remove nor count it
}

// Disk is a disk of a checkpoint.
type Disk struct {
	Disk        string          `json:"disk"`
	Size        int64           `json:"virtual_size"`
	Mode        string          `json:"mode,omitempty"`
	Detection   string          `json:"detection,omitempty"`
	DataBytes   int64           `json:"data_bytes"`
	NewBytes    int64           `json:"new_bytes"`
	ZeroBytes   int64           `json:"zero_bytes"`
	StoredBytes int64           `json:"stored_bytes"`
	Heat        string          `json:"heat,omitempty"`
	Unusual     []habit.Finding `json:"unusual,omitempty"`
}

// Drill is a drill of a checkpoint.
type Drill struct {
	UUID       string    `json:"uuid"`
	Checkpoint string    `json:"checkpoint,omitempty"` // empty: it was forgotten
	Begun      time.Time `json:"begun"`
	Verdict    string    `json:"verdict"`
	Partial    bool      `json:"partial,omitempty"` // some disks were left out
}

// tells reports whether a drill tells of its checkpoint as a whole, as [record.Name.Tells].
func (d *Drill) tells() bool { return !d.Partial || d.Verdict == string(record.VerdictFailed) }

// workers is how many domains are looked at at a time.
const workers = 8

// Make looks at domains. What can't be read of a domain is told in its verdict; an error
// says that the repository can't be asked.
func Make(ctx context.Context, repo *chain.Repository, o Options) (*Report, error) {
	r := &Report{
		Format: "imgbackup-report", Version: 1, Made: o.Now.UTC().Truncate(time.Second), Zone: o.Zone.String(), Tool: o.Tool,
		Place: o.Place, RepositoryID: repo.Config.ID, Domains: make([]*Domain, len(o.Domains)),
	}
	drills, err := record.List(ctx, repo, "")
	if err == nil {
		drills, err = record.Proven(ctx, repo, drills)
	}
	if err != nil {
		return nil, err
	}
	o.Rules.Young = repo.Config.ObjectLock.Young()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i, name := range o.Domains {
		g.Go(func() error {
			d, err := makeDomain(ctx, repo, name, drills[name], o)
			r.Domains[i] = d
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	r.sum()
	return r, nil
}

// sum counts what is in the domains.
func (r *Report) sum() {
	for _, d := range r.Domains {
		r.Checkpoints += len(d.Checkpoints)
		r.StoredBytes += d.StoredBytes
		switch d.Verdict.Level {
		case Good:
			r.Good++
		case Warning:
			r.Warning++
		case Bad:
			r.Bad++
		}
		r.Verdict.Level = max(r.Verdict.Level, d.Verdict.Level)
		for _, reason := range d.Verdict.Reasons {
			reason.Text = d.Domain + ": " + reason.Text
			r.Verdict.Reasons = append(r.Verdict.Reasons, reason)
		}
	}
	slices.SortStableFunc(r.Verdict.Reasons, func(a, b Reason) int { return int(b.Level) - int(a.Level) })
	if len(r.Domains) == 0 {
		r.Verdict.add(Warning, "empty", "the repository has no checkpoints")
	}
}

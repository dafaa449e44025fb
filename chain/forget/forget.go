// SPDX-License-Identifier: Apache-2.0

// Package forget removes checkpoints from a repository, by name or by rules: it finds out
// which go and which stay and why, as a [Plan] that can be looked at, and carries it out.
//
// A checkpoint is its manifest, so that forgetting it removes one object; what it needed
// stays for a prune to delete. Nothing is done to images: the bitmaps of forgotten
// checkpoints stay known as ours (see [chain.Forgotten]), and later backups remove them.
package forget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/retention"
)

// Request says which checkpoints go: those of one domain that are named, or those of
// some domains that no rule keeps.
type Request struct {
	Domains     []string
	Checkpoints []string // of the one domain; nil: by rules

	Rules      retention.Rules
	Zone       *time.Location // of the periods of rules
	AllowEmpty bool           // rules may leave a domain without any archive
	Now        time.Time      // by this machine's clock, only to tell that a clock is wrong
}

// Plan is what is to be done, or was.
type Plan struct {
	Keep    []Decision // by domain, then oldest first
	Remove  []Decision
	Notes   []string // what a person should know before
	Refused []error  // domains of which nothing goes, and why
	Left    int      // the checkpoints of these, which are in neither list

	domains []domainPlan
}

// Decision is about one checkpoint.
type Decision struct {
	Domain  string
	Reasons []string // why it stays; none: it goes
	*chain.Manifest
}

type domainPlan struct {
	all, gone []*chain.Manifest
}

// EmptyError says that rules would leave a domain without any archive.
type EmptyError struct{ Domain string }

func (e *EmptyError) Error() string {
	return fmt.Sprintf("these rules would leave domain %s without any archive", e.Domain)
}

// Make finds out what a request comes to. It writes nothing. Where rules can't be applied
// to a domain, the others are planned for, and [Plan.Refused] says why; where they would
// leave one empty, nothing is: that is an [*EmptyError]. Other errors are
// [chain.ErrNoCheckpoint], a [*chain.NoDomainError], damage, and the store's.
func Make(ctx context.Context, repo *chain.Repository, req Request) (*Plan, error) {
	if err := repo.CheckWritable(); err != nil {
		return nil, err
	}
	p := &Plan{}
	for _, domain := range req.Domains {
		h, err := repo.History(ctx, domain)
		if err != nil {
			return nil, err
		}
		if len(h.Names) == 0 {
			return nil, &chain.NoDomainError{Domain: domain}
		}
		var decisions []Decision
		if req.Checkpoints != nil {
			decisions, err = byName(h, domain, req.Checkpoints)
		} else {
			decisions, err = req.byRules(ctx, repo, h, domain)
		}
		var empty *EmptyError
		switch {
		case errors.As(err, &empty) || err != nil && req.Checkpoints != nil:
			return nil, err
		case err != nil:
			p.Refused = append(p.Refused, fmt.Errorf("nothing of domain %s is forgotten: %w", domain, err))
			p.Left += len(h.Names)
			continue
		}
		if req.Checkpoints == nil {
			p.Notes = append(p.Notes, inDoubt(h.Manifests)...)
		}
		p.add(h.Manifests, decisions)
	}
	return p, nil
}

// add takes in what was decided about a domain's checkpoints.
func (p *Plan) add(all []*chain.Manifest, decisions []Decision) {
	d := domainPlan{all: all}
	for _, one := range decisions {
		if len(one.Reasons) > 0 {
			p.Keep = append(p.Keep, one)
			continue
		}
		p.Remove = append(p.Remove, one)
		d.gone = append(d.gone, one.Manifest)
	}
	p.Notes = append(p.Notes, nextBackup(d.all, d.gone)...)
	p.domains = append(p.domains, d)
}

// byName decides that the named checkpoints go.
func byName(h chain.History, domain string, names []string) ([]Decision, error) {
	for _, name := range names {
		at := slices.IndexFunc(h.Manifests, func(m *chain.Manifest) bool { return m.Checkpoint == name })
		switch {
		case at < 0 && slices.Contains(h.Names, name):
			return nil, fmt.Errorf("checkpoint %s of domain %s can't be read, so that nobody knows what others need of it: %w",
				name, domain, errors.Join(h.Unusable...))
		case at < 0:
			return nil, fmt.Errorf("domain %s: %w: %s", domain, chain.ErrNoCheckpoint, name)
		case slices.Contains(h.Manifests[at].Tags, retention.KeepTag):
			return nil, fmt.Errorf("checkpoint %s of domain %s has the tag %s, and stays (imgbackup tag %s %s --remove %s takes it away)",
				name, domain, retention.KeepTag, domain, name, retention.KeepTag)
		}
	}
	var all []Decision
	for _, m := range h.Manifests {
		d := Decision{Domain: domain, Manifest: m}
		if !slices.Contains(names, m.Checkpoint) {
			d.Reasons = []string{"not named"}
		}
		all = append(all, d)
	}
	return all, nil
}

// Stands is what stays of what the plan keeps and removes, when only these are gone; as Keep, sorted.
func (p *Plan) Stands(gone []Decision) []Decision {
	all := slices.Clone(p.Keep)
	for _, d := range p.Remove {
		if !slices.ContainsFunc(gone, func(g Decision) bool { return g.UUID == d.UUID }) {
			d.Reasons = []string{"could not be forgotten"}
			all = append(all, d)
		}
	}
	slices.SortStableFunc(all, func(x, y Decision) int {
		return cmp.Or(cmp.Compare(x.Domain, y.Domain), cmp.Compare(x.Sequence, y.Sequence), cmp.Compare(x.UUID, y.UUID))
	})
	return all
}

// Run carries the plan out. tell is called for each checkpoint that is gone. After an
// error the others stand.
func (p *Plan) Run(ctx context.Context, repo *chain.Repository, tell func(*chain.Manifest)) error {
	var errs []error
	for _, d := range p.domains {
		if err := chain.Forget(ctx, repo, d.all, d.gone, tell); err != nil {
			errs = append(errs, fmt.Errorf("domain %s: %w", d.all[0].Domain, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/suggest"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/request"
)

// chooseDrills finds the checkpoints that are asked for. Of each domain they come in the
// order in which they were made, so that each pack is read once; but the newest comes first if it is
// restored, since that fetches all of it. Of several domains one that cannot be drilled keeps
// none of the others from it: failed says why.
func (a *app) chooseDrills(ctx context.Context, repo *chain.Repository, r *drillRequest) (all []*drill.Target, failed, err error) {
	domains := r.domains
	if len(domains) == 0 || len(r.plans.Names()) > 0 { // else nobody needs to know
		known, err := repo.Domains(ctx)
		if err != nil {
			return nil, nil, err
		}
		a.notePlans(r, known)
		if len(domains) == 0 {
			domains = known
		}
	}
	if len(domains) == 0 {
		return nil, nil, errors.New("the repository is empty: there is nothing to drill")
	}
	for _, domain := range domains {
		targets, err := r.chooseOf(ctx, repo, domain)
		switch {
		case err != nil && (len(domains) == 1 || !ofOneDomain(err)):
			return nil, nil, err
		case err != nil:
			err = fmt.Errorf("domain %s was not drilled: %w", domain, err)
			a.note(err.Error())
			failed = errors.Join(failed, err)
		}
		all = append(all, targets...)
	}
	if len(all) == 0 && failed != nil {
		return nil, nil, failed
	}
	return all, failed, nil
}

// ofOneDomain reports whether an error is about one domain, and not about the store or how the
// command was called.
func ofOneDomain(err error) bool {
	return archive.IsDamage(err) || errors.As(err, new(*chain.NewerError)) || errors.As(err, new(*noDataError))
}

// noDataError says that a domain has no data to drill.
type noDataError struct{ domain string }

func (e *noDataError) Error() string {
	return fmt.Sprintf("no checkpoint of domain %s holds data: they are only in the images", e.domain)
}

// notePlans tells of plans for domains that there are not.
func (a *app) notePlans(r *drillRequest, known []string) {
	for _, name := range r.plans.Names() {
		if !slices.Contains(known, name) {
			a.note(fmt.Sprintf("--plan: domain %s is not in the repository%s", name, suggest.DidYouMean(suggest.Near(name, known))))
		}
	}
}

// chooseOf finds those of a domain.
func (r *drillRequest) chooseOf(ctx context.Context, repo *chain.Repository, domain string) (all []*drill.Target, err error) {
	history, err := allManifests(ctx, repo, domain)
	if err != nil {
		return nil, err
	}
	chosen, err := r.choose(ctx, repo, domain, history)
	if err != nil {
		return nil, err
	}
	p := r.planOf(domain)
	disks, newest := p.Disks, len(chosen)-1
	if last := len(chosen) - 1; last > 0 && p.Scratch != plan.NoScratch {
		chosen, newest = slices.Concat(chosen[last:], chosen[:last]), 0
	}
	for i, m := range chosen {
		for _, disk := range disks {
			if d, ok := m.Disk(disk); !ok || len(d.Maps) == 0 {
				return nil, usage.Errorf("--disk %s: checkpoint %s of %s has no data of such a disk", disk, m.Checkpoint, domain)
			}
		}
		all = append(all, &drill.Target{Manifest: m, Disks: disks, ChosenBy: r.checkpoint, History: history, Whole: i == newest || r.each})
	}
	return all, nil
}

func (r *drillRequest) choose(ctx context.Context, repo *chain.Repository, domain string, history []*chain.Manifest) ([]*chain.Manifest, error) {
	archives := slices.DeleteFunc(slices.Clone(history), func(m *chain.Manifest) bool { return m.Kind != chain.KindArchive })
	named := slices.IndexFunc(archives, func(m *chain.Manifest) bool { return m.Checkpoint == r.checkpoint })
	random, isRandom := strings.CutPrefix(r.checkpoint, "random:")
	age, isUndrilled := strings.CutPrefix(r.checkpoint, "undrilled:")
	switch {
	case named >= 0:
		return archives[named : named+1], nil
	case len(archives) == 0:
		return nil, &noDataError{domain}
	case r.checkpoint == request.Latest:
		return archives[len(archives)-1:], nil
	case r.checkpoint == "all":
	case isRandom:
		n, err := strconv.ParseUint(random, 10, 31)
		if err != nil || n == 0 {
			return nil, usage.Errorf("--checkpoint %s: want random: and how many, as random:3", r.checkpoint)
		}
		for len(archives) > int(n) {
			i := rand.IntN(len(archives))
			archives = slices.Delete(archives, i, i+1)
		}
	case isUndrilled:
		within, err := plan.ParseDuration(age)
		if err != nil {
			return nil, usage.Errorf("--checkpoint undrilled:%w", err)
		}
		names, err := record.List(ctx, repo, domain)
		if err != nil {
			return nil, err
		}
		disks := r.planOf(domain).Disks
		var left []*chain.Manifest
		for _, m := range archives {
			drilled, err := hasPassed(ctx, repo, m, disks, names[domain], within)
			if err != nil {
				return nil, err
			}
			if !drilled {
				left = append(left, m)
			}
		}
		return left, nil
	default:
		return nil, noCheckpoint(ctx, repo, domain, r.checkpoint)
	}
	return archives, nil
}

// hasPassed reports whether a drill of these disks of a checkpoint, of all if there are
// none, has passed within that time. A record that cannot be read counts for nothing.
func hasPassed(ctx context.Context, repo *chain.Repository, m *chain.Manifest, disks []string, names []record.Name, within time.Duration) (bool, error) {
	for _, n := range slices.Backward(names) {
		age := time.Since(n.Begun) // a record of the future leaves nothing out for ever
		if !n.Of(m.UUID) || n.Verdict != record.VerdictPassed || age >= within || age < -time.Hour {
			continue
		}
		rec, err := record.Read(ctx, repo, m.Domain, n.UUID)
		switch {
		case archive.IsDamage(err), errors.As(err, new(*chain.NewerError)), errors.Is(err, objstore.ErrNotFound):
			continue
		case err != nil:
			return false, fmt.Errorf("which checkpoints were drilled cannot be told: %w", err)
		}
		missed := func(disk string) bool { return slices.Contains(rec.LeftOut, disk) }
		if rec.CheckpointUUID == m.UUID && (len(rec.LeftOut) == 0 || len(disks) > 0 && !slices.ContainsFunc(disks, missed)) {
			return true, nil
		}
	}
	return false, nil
}

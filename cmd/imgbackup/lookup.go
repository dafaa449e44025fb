// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/suggest"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
	"github.com/imgbackup/imgbackup/request"
)

// openRepo opens the repository that --repo names.
func (a *app) openRepo(ctx context.Context) (*chain.Repository, error) {
	store, err := a.store(open.Options{})
	if err != nil {
		return nil, err
	}
	return a.openIn(ctx, store)
}

// openIn opens the repository in its store.
func (a *app) openIn(ctx context.Context, store objstore.Store) (*chain.Repository, error) {
	repo, err := chain.OpenWith(ctx, store, a.unlockAhead(ctx, store))
	if err != nil {
		return nil, a.here(err)
	}
	repo.Memory, repo.Told = a.memory, a.note
	for _, l := range repo.Lowered {
		a.note(fmt.Sprintf("somebody has put something on top of %s: version %s, which lies below, is what counts (imgbackup repair puts it on top again)", l.Key, l.ID))
	}
	return a.identify(repo)
}

// here has an error of opening say of which repository it is, where it does not yet: a copy opens two.
// Those of keys say what they are of.
func (a *app) here(err error) error {
	if wrongKey(err) || strings.HasPrefix(err.Error(), a.place()+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", a.place(), err)
}

// checkReadsData says that the key which has opened a repository does not read what disks hold, if that is so,
// before anything else is done. what completes "is needed for …".
func checkReadsData(repo *chain.Repository, what string) error {
	if archive.OpensChunks(repo.Store) {
		return nil
	}
	return &crypt.KeyError{Half: crypt.Data, What: "is needed for " + what + ", which reads what disks hold (roles drill and admin have it)"}
}

// repoIfNeeded opens the repository where one is needed for a push or a pull: to
// judge an incremental, and for a checkpoint. Else an empty one stands in for it.
func (a *app) repoIfNeeded(ctx context.Context, req *backup.Request) (*chain.Repository, error) {
	incremental := req.Mode == backup.Incremental || req.Since != ""
	bitmap := req.Bitmap != ""
	for _, d := range req.Disks {
		bitmap = bitmap || d.Bitmap != ""
		incremental = incremental || d.Mode == backup.Incremental && d.Bitmap == "" || d.Since != ""
	}
	if incremental || req.Checkpoint != "" {
		repo, err := a.openCached(ctx)
		if err == nil {
			err = resolveLatest(ctx, repo, req)
		}
		return repo, err
	}
	if bitmap && a.place() != "" {
		return a.openCached(ctx) // what is on record of a bitmap judges it
	}
	repo, err := chain.Init(ctx, objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		return nil, err
	}
	repo.Memory = a.memory
	return a.identify(repo)
}

// openCheckpoint opens the repository and finds a checkpoint.
func (a *app) openCheckpoint(ctx context.Context, domain, checkpoint string) (*chain.Repository, *chain.Manifest, error) {
	if err := checkNames(domain, checkpoint); err != nil {
		return nil, nil, err
	}
	repo, err := a.openReading(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := find(ctx, repo, domain, checkpoint, anyKind)
	return repo, m, err
}

// checkNames refuses what can be no domain's and no checkpoint's name; an empty
// name of a checkpoint is the newest.
func checkNames(domain, checkpoint string) error {
	if err := chain.CheckDomain(domain); err != nil {
		return usage.Wrap(err)
	}
	if checkpoint == "" {
		return nil
	}
	return usage.Wrap(chain.CheckName(checkpoint))
}

// kinds are those of checkpoints that newest means.
type kinds bool

const (
	anyKind  kinds = false
	withData kinds = true
)

// find returns the checkpoint of the names that a person gave. No name, or latest,
// is the newest of the kinds that are asked for.
func find(ctx context.Context, repo *chain.Repository, domain, checkpoint string, k kinds) (*chain.Manifest, error) {
	if err := checkNames(domain, checkpoint); err != nil {
		return nil, err
	}
	if checkpoint == "" {
		return newest(ctx, repo, domain, k)
	}
	m, err := repo.Manifest(ctx, domain, checkpoint)
	switch {
	case errors.Is(err, chain.ErrNoCheckpoint) && checkpoint == request.Latest:
		return newest(ctx, repo, domain, k)
	case errors.Is(err, chain.ErrNoCheckpoint):
		return nil, noCheckpoint(ctx, repo, domain, checkpoint)
	}
	return m, err
}

func newest(ctx context.Context, repo *chain.Repository, domain string, k kinds) (*chain.Manifest, error) {
	ms, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	// The newest cannot be told while one that may be it is unreadable.
	if len(damaged) > 0 {
		return nil, fmt.Errorf("the newest checkpoint cannot be determined, name one with --checkpoint: %w", errors.Join(damaged...))
	}
	if len(ms) == 0 {
		return nil, noDomain(ctx, repo, domain)
	}
	if k == withData {
		ms = slices.DeleteFunc(ms, func(m *chain.Manifest) bool { return m.Kind != chain.KindArchive })
	}
	if m := chain.Newest(ms); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no checkpoint of domain %s holds data: they are only in the images", domain)
}

// resolveLatest puts the newest checkpoint's name where a request asks to be
// incremental since latest.
func resolveLatest(ctx context.Context, repo *chain.Repository, req *backup.Request) error {
	asked := []*string{&req.Since}
	for i := range req.Disks {
		asked = append(asked, &req.Disks[i].Since)
	}
	for _, name := range asked {
		if *name != request.Latest {
			continue
		}
		m, err := find(ctx, repo, req.Domain, request.Latest, anyKind)
		if err != nil {
			return err
		}
		*name = m.Checkpoint
	}
	return nil
}

// allManifests returns those of a domain, oldest first, at least one.
func allManifests(ctx context.Context, repo *chain.Repository, domain string) ([]*chain.Manifest, error) {
	if err := checkNames(domain, ""); err != nil {
		return nil, err
	}
	ms, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	for _, err := range damaged {
		return nil, err
	}
	if len(ms) == 0 {
		return nil, noDomain(ctx, repo, domain)
	}
	return ms, nil
}

// noDomain is the error for a domain that is not in the repository.
func noDomain(ctx context.Context, repo *chain.Repository, domain string) error {
	err := &chain.NoDomainError{Domain: domain}
	known, lerr := repo.Domains(ctx)
	switch {
	case lerr != nil:
		return err // which is true all the same
	case len(known) == 0:
		return fmt.Errorf("%w: it is empty", err)
	}
	return fmt.Errorf("%w%s", err, thereIs(domain, known))
}

// sayWhich adds to an error about a domain that is not there which domains are.
func sayWhich(ctx context.Context, repo *chain.Repository, err error) error {
	var none *chain.NoDomainError
	if errors.As(err, &none) {
		return noDomain(ctx, repo, none.Domain)
	}
	return err
}

// noCheckpoint is the error for a checkpoint that its domain does not have.
func noCheckpoint(ctx context.Context, repo *chain.Repository, domain, checkpoint string) error {
	known, err := repo.Checkpoints(ctx, domain)
	if err == nil && len(known) == 0 {
		return noDomain(ctx, repo, domain)
	}
	return fmt.Errorf("domain %s has no checkpoint %s%s", domain, checkpoint, thereIs(checkpoint, known))
}

// maxNamed bounds the names in a message.
const maxNamed = 8

// thereIs ends an error about a name with the one that was perhaps meant, and with
// what there is.
func thereIs(name string, known []string) string {
	text, more := suggest.DidYouMean(suggest.Near(name, known)), ""
	if n := len(known) - maxNamed; n > 1 {
		known, more = known[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	if len(known) == 0 {
		return text
	}
	return text + " (there is " + strings.Join(known, ", ") + more + ")"
}

// checkpointArg is the checkpoint that is named as an argument, or by a flag; empty:
// neither is there.
func checkpointArg(args []string, at int, flag string) (string, error) {
	switch {
	case len(args) <= at:
		return flag, nil
	case args[at] == "":
		return "", usage.Errorf("the checkpoint's name is empty")
	case flag != "" && flag != args[at]:
		return "", usage.Errorf("the checkpoint is named twice: %s and %s", args[at], flag)
	}
	return args[at], nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
)

// openRepo opens the repository that --repo names.
func (a *app) openRepo(ctx context.Context) (*chain.Repository, error) {
	store, err := a.store(false)
	if err != nil {
		return nil, err
	}
	repo, err := chain.Open(ctx, store)
	if err != nil {
		return nil, err
	}
	return a.identify(repo)
}

// repoIfNeeded opens the repository where one is needed for a push or a pull: to
// judge an incremental, and for a checkpoint. Else an empty one stands in for it.
func (a *app) repoIfNeeded(ctx context.Context, req backup.Request) (*chain.Repository, error) {
	incremental := req.Mode == backup.Incremental || req.Since != ""
	for _, d := range req.Disks {
		incremental = incremental || d.Mode == backup.Incremental || d.Since != ""
	}
	if incremental || req.Checkpoint != "" {
		return a.openRepo(ctx)
	}
	repo, err := chain.Init(ctx, objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		return nil, err
	}
	return a.identify(repo)
}

// openCheckpoint opens the repository and loads a checkpoint.
func (a *app) openCheckpoint(ctx context.Context, domain, checkpoint string) (*chain.Repository, *chain.Manifest, error) {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := manifest(ctx, repo, domain, checkpoint)
	return repo, m, err
}

// manifest loads a checkpoint by the names that a person gave.
func manifest(ctx context.Context, repo *chain.Repository, domain, checkpoint string) (*chain.Manifest, error) {
	if err := checkNames(domain, checkpoint); err != nil {
		return nil, err
	}
	return repo.Manifest(ctx, domain, checkpoint)
}

// checkNames refuses what can be no domain's and no checkpoint's name.
func checkNames(domain, checkpoint string) error {
	if err := chain.CheckDomain(domain); err != nil {
		return usage.Wrap(err)
	}
	return usage.Wrap(chain.CheckName(checkpoint))
}

// chosen is the checkpoint that was named, or the newest that holds data.
func chosen(ctx context.Context, repo *chain.Repository, domain, checkpoint string) (*chain.Manifest, error) {
	if checkpoint != "" {
		return manifest(ctx, repo, domain, checkpoint)
	}
	if err := chain.CheckDomain(domain); err != nil {
		return nil, usage.Wrap(err)
	}
	ms, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	// The newest cannot be told while one that may be it is unreadable.
	if len(damaged) > 0 {
		return nil, fmt.Errorf("the newest checkpoint cannot be told, name one with --checkpoint: %w", errors.Join(damaged...))
	}
	archives := ms[:0:0]
	for _, m := range ms {
		if m.Kind == chain.KindArchive {
			archives = append(archives, m)
		}
	}
	m := chain.Newest(archives)
	switch {
	case m != nil:
		return m, nil
	case len(ms) > 0:
		return nil, fmt.Errorf("no checkpoint of domain %s holds data: they are only in the images", domain)
	}
	return nil, fmt.Errorf("the repository holds no checkpoint of domain %s", domain)
}

// allManifests returns those of a domain, oldest first, at least one.
func allManifests(ctx context.Context, repo *chain.Repository, domain string) ([]*chain.Manifest, error) {
	if err := chain.CheckDomain(domain); err != nil {
		return nil, usage.Wrap(err)
	}
	ms, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	for _, err := range damaged {
		return nil, err
	}
	if len(ms) == 0 {
		return nil, fmt.Errorf("the repository holds no domain %s", domain)
	}
	return ms, nil
}

// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Repository is one that backups of this host go to.
type Repository struct {
	// Place is where it is, if the name that it is checked under does not say so.
	Place string
	// Open opens it; the store is there as soon as it can be asked, whatever the error.
	Open func(ctx context.Context) (objstore.Store, *chain.Repository, error)
	// Advice is what to do about an error of Open; may be empty.
	Advice func(error) string
	// Write: it is also tried whether objects can be stored, with some that are removed again.
	Write bool
}

// Check looks at the repository under a name, as "repository site1".
func (r Repository) Check(name string) Check { return Check{name, r.look} }

func (r Repository) look(ctx context.Context) (all []Finding) {
	begun := time.Now()
	store, repo, err := r.Open(ctx)
	took := time.Since(begun).Round(time.Millisecond)
	if err == nil {
		err = lists(ctx, store)
	}
	if err != nil {
		all = append(all, failed(r.advice(err), "%v", err))
	} else {
		what := repo.Config.ID
		if r.Place != "" {
			what += ", " + r.Place
		}
		all = append(all, ok("%s: opened in %s", what, took))
	}
	if store == nil {
		return all
	}
	if c, is := objstore.As[objstore.Clocked](store); is {
		if theirs, ours := c.Clock(); !theirs.IsZero() {
			all = append(all, skew(theirs, ours))
		}
	}
	if p, is := objstore.As[objstore.Placed](store); is {
		all = append(all, Folder{Path: p.Dir()}.look(ctx)...)
	}
	if repo == nil || err != nil {
		return all
	}
	if err := repo.CheckWritable(); err != nil {
		return append(all, failed("install a newer imgbackup; what is there can be read and restored", "%v", err))
	}
	if repo.Config.SingleWriter {
		all = append(all, ok("only one program at a time may write to it (init --single-writer)"))
	}
	if r.Write {
		all = append(all, writes(ctx, store))
	}
	return all
}

func (r Repository) advice(err error) string {
	if r.Advice != nil {
		if text := r.Advice(err); text != "" {
			return text
		}
	}
	switch {
	case errors.Is(err, chain.ErrNotRepository):
		return "see that this is the right place, and mounted; imgbackup init makes a repository"
	case errors.As(err, new(*chain.NewerError)):
		return "install a newer imgbackup"
	case archive.IsDamage(err):
		return "imgbackup check says what is affected, and imgbackup repair mends"
	case errors.Is(err, context.DeadlineExceeded):
		return "see that the store runs, and can be reached from here"
	}
	return "see docs/s3.md for a bucket's settings and rights; of a folder, that it is there and who may read it"
}

// lists asks for a few of the domains' objects.
func lists(ctx context.Context, store objstore.Store) error {
	for _, err := range store.List(ctx, "domains/") {
		return err // one is enough
	}
	return nil
}

func writes(ctx context.Context, store objstore.Store) Finding {
	p, is := objstore.As[objstore.Prober](store)
	if !is {
		return ok("whether it can be written to is not tried")
	}
	begun := time.Now()
	if err := p.Probe(ctx); err != nil {
		return failed("see what its credentials, or this user, may do (imgbackup key policy)", "objects can't be stored: %v", err)
	}
	return ok("objects are stored, and removed again, as they should be: %s", time.Since(begun).Round(time.Millisecond))
}

// Unreachable is what a repository is that could not even be asked.
func Unreachable(name string, err error, advice string) Check {
	f := failed(advice, "%v", fmt.Errorf("it can't be opened: %w", err))
	return Check{name, func(context.Context) []Finding { return []Finding{f} }}
}

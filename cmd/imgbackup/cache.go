// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
	"github.com/imgbackup/imgbackup/objstore/open"
)

const (
	cacheVar     = "IMGBACKUP_CACHE"      // a folder, or off
	cacheSizeVar = "IMGBACKUP_CACHE_SIZE" // as 10GiB
	// defaultCacheSize is large enough for the maps of hundreds of TiB.
	defaultCacheSize = 10 << 30
)

// openCached is openRepo for commands that read what a repository holds and do not prove
// it: what this host has read or written before it need not be fetched again.
func (a *app) openCached(ctx context.Context) (*chain.Repository, error) {
	return a.openCachedFor(ctx, "")
}

// openCachedFor is openCached for who asks at once what the repository has of a domain. A store
// that is far away is asked for that beside the configuration, where that tells nobody what it may
// not know. Whoever has opened it calls dropAhead in the end.
func (a *app) openCachedFor(ctx context.Context, domain string) (*chain.Repository, error) {
	store, err := a.store(open.Options{})
	if err != nil {
		return nil, err
	}
	dir, dirErr := a.cacheDir(store)
	if _, near := objstore.As[objstore.Placed](store); !near && dir != nil && domain != "" {
		a.ahead = dir.Ahead(ctx, store, a.place(), chain.DomainPrefix(domain))
	}
	repo, err := a.openIn(ctx, store)
	if err != nil {
		return nil, err
	}
	if dirErr != nil || dir == nil {
		return repo, dirErr
	}
	a.cached = &cachedRepo{dir: dir, id: repo.Config.ID, place: a.place()}
	// A folder answers as fast as what would be remembered of it.
	if p, ok := objstore.As[objstore.Placed](repo.Store); ok {
		a.cached.place = p.Dir()
		return repo, nil
	}
	repo.Wrap(func(s objstore.Store) objstore.Store {
		return cache.New(s, dir, cache.Options{
			ID: repo.Config.ID, Place: a.cached.place, Kind: kindOf,
			// The names of domains may be hidden in an encrypted one, and its keys take longer to open than a listing.
			Plain: repo.Config.Encryption == nil, Ahead: a.ahead,
		})
	})
	return repo, nil
}

// dropAhead ends what was asked ahead and not used.
func (a *app) dropAhead() {
	a.ahead.Drop()
	a.ahead = nil
}

// openReading is openCached for commands that read and write nothing: what somebody has put on
// top of what is needed does not hide it, where the store keeps versions, and is told.
func (a *app) openReading(ctx context.Context) (*chain.Repository, error) {
	repo, err := a.openCached(ctx)
	if err != nil {
		return nil, err
	}
	return a.beneath(repo), nil
}

func (a *app) beneath(repo *chain.Repository) *chain.Repository {
	return repo.Beneath(func(key, id string) {
		a.note(fmt.Sprintf("somebody has put something on top of %s: version %s, which is right, is read (imgbackup repair puts it on top again)", key, id))
	})
}

// cachedRepo is where something is kept of the repository that was opened.
type cachedRepo struct {
	dir       *cache.Dir
	id, place string
}

// knownFolder is where what the repository has of chunks is kept, and how large it may
// become, bytes; empty: nowhere.
func (a *app) knownFolder() (string, int64) {
	if a.cached == nil {
		return "", 0
	}
	return a.cached.dir.Folder(a.cached.id, a.cached.place)
}

// keptFolder is where this host keeps what is of use to later runs, of a repository that was
// opened; empty: nowhere.
func (a *app) keptFolder() string {
	if a.cached == nil {
		return ""
	}
	return a.cached.dir.Path()
}

// makeCache makes the cache's folder where a backup is going to keep what the repository has of chunks, since a
// process that has restricted itself can't. Of a small repository in a folder nothing is kept.
func (a *app) makeCache(ctx context.Context, repo *chain.Repository) {
	if a.cached == nil || !a.alone {
		return
	}
	if _, err := os.Stat(a.cached.dir.Path()); !errors.Is(err, fs.ErrNotExist) || !archive.FillsTable(ctx, repo.Store) {
		return
	}
	_ = os.MkdirAll(a.cached.dir.Path(), 0o700) // a backup goes on without, and tells of it
}

// kindOf says what of a repository is kept. Packs are too many, and files may be secret.
func kindOf(key string) (cache.Kind, [32]byte) {
	prefix, name, ok := archive.ParseKey(key)
	_, isIndex := archive.IsIndex(prefix)
	switch {
	case isIndex:
		return cache.Own, name // what others' say is in the table of chunks
	case ok && prefix != archive.PackPrefix && prefix != archive.FilePrefix:
		return cache.Digested, name
	case !ok && chain.ParseKey(key).Kind == chain.KeyManifest:
		return cache.Tagged, name
	}
	return cache.Never, name
}

// cacheDir opens the cache; nil: there is none.
func (a *app) cacheDir(store objstore.Store) (*cache.Dir, error) {
	path := a.cache
	if path == "" {
		path = os.Getenv(cacheVar)
	}
	if path == "off" {
		return nil, nil
	}
	size, err := cacheSize()
	if err != nil {
		return nil, err
	}
	given := path != ""
	if !given {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, nil // there is no home: whoever needs the cache says so
		}
		path = filepath.Join(base, "imgbackup")
	}
	if err := objstore.CheckOutside(store, path); err != nil {
		return nil, fmt.Errorf("%s: %w", cacheVar, err)
	}
	dir, err := cache.Open(path, size)
	if err == nil {
		return dir, nil
	}
	if !given && errors.Is(err, os.ErrPermission) {
		return nil, nil
	}
	a.note(fmt.Sprintf("nothing is kept on this machine of what the repository holds: %v (%s names another folder, or is off)", err, cacheVar))
	return nil, nil
}

func cacheSize() (int64, error) {
	text := os.Getenv(cacheSizeVar)
	if text == "" {
		return defaultCacheSize, nil
	}
	size, err := humanize.ParseBytes(text)
	if err != nil || size < 1<<20 || size > math.MaxInt64 {
		return 0, usage.Errorf("%s: %q is no size of at least 1MiB, as 10GiB", cacheSizeVar, text)
	}
	return int64(size), nil
}

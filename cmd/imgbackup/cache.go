// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
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
	repo, err := a.openRepo(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := a.cacheDir(repo.Store)
	if err != nil || dir == nil {
		return repo, err
	}
	a.cached = &cachedRepo{dir: dir, id: repo.Config.ID, place: a.place()}
	// A folder answers as fast as what would be remembered of it.
	if p, ok := objstore.As[objstore.Placed](repo.Store); ok {
		a.cached.place = p.Dir()
		return repo, nil
	}
	repo.Store = cache.New(repo.Store, dir, cache.Options{ID: repo.Config.ID, Place: a.cached.place, Kind: kindOf})
	return repo, nil
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

// kindOf says what of a repository is kept. Packs are too many, and files may be secret.
func kindOf(key string) (cache.Kind, [32]byte) {
	prefix, name, ok := archive.ParseKey(key)
	switch {
	case ok && prefix == archive.IndexPrefix:
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

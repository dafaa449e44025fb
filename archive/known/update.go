// SPDX-License-Identifier: Apache-2.0

package known

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// ErrFull says that the table may not become larger.
var ErrFull = errors.New("the table of chunks may not become larger")

// Update adds indexes to a table. It must be closed.
type Update struct {
	t       *Table
	lock    *os.File
	batch   batch
	written []*run // of this update, not in the list yet
}

// Update begins to change the table, after having looked at what others have made of it.
// The indexes are those that are listed. It returns those that the table lacks; nil
// where another is changing it at this moment.
func (t *Table) Update(indexes []Digest) (*Update, []Digest, error) {
	if err := os.MkdirAll(t.dir, dirMode); err != nil {
		return nil, nil, err
	}
	lock, err := os.OpenFile(filepath.Join(t.dir, lockName), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, nil, err
	}
	if err := sys.TryLock(lock); err != nil {
		_ = lock.Close() // nothing was written
		if errors.Is(err, sys.ErrLocked) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	u := &Update{t: t, lock: lock}
	if err := t.load(); err != nil {
		u.Close()
		return nil, nil, err
	}
	return u, t.Listed(indexes), nil
}

// Add adds an index: read gives its packs and their frames. When read fails, nothing of
// it is added.
func (u *Update) Add(index Digest, read func(add func(Pack, []Frame)) error) error {
	if len(u.batch.records) > batchRecords/2 {
		if err := u.flush(); err != nil {
			return err
		}
	}
	b := &u.batch
	if bytesOf(u.t.runs)+bytesOf(u.written)+int64(len(b.records))*int64(tableKey+placeLen) > u.t.limit {
		return ErrFull
	}
	before := *b
	b.beginIndex(index)
	if err := read(b.add); err != nil {
		*b = before
		return err
	}
	return nil
}

// flush writes what was added as a run.
func (u *Update) flush() error {
	if len(u.batch.records) == 0 && len(u.batch.indexes) == 0 {
		return nil
	}
	err := u.write(u.batch.write)
	b := &u.batch
	b.packs, b.indexes, b.records = b.packs[:0], b.indexes[:0], b.records[:0]
	return err
}

// write makes a new run.
func (u *Update) write(fill func(*os.File) error) (err error) {
	name := runPrefix + rand.Text()
	path := filepath.Join(u.t.dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Close())
	var r *run
	if err == nil {
		r, err = openRun(path, name)
	}
	if err != nil {
		_ = os.Remove(path) // else the next update does
		return err
	}
	for i := range r.live {
		r.live[i] = true
	}
	u.written = append(u.written, r)
	return nil
}

// Commit merges what is to be merged, and makes all of it the table.
func (u *Update) Commit(ctx context.Context) error {
	if err := u.flush(); err != nil {
		return err
	}
	all := slices.Concat(u.t.runs, u.written)
	keep, old := split(all)
	if len(old) > 0 {
		before := len(u.written)
		if err := u.write(func(f *os.File) error { return mergeRuns(ctx, f, old) }); err != nil {
			return err
		}
		merged := u.written[before]
		keep = append(keep, merged)
	}
	slices.SortStableFunc(keep, func(a, b *run) int { return cmp.Compare(b.count, a.count) })
	if err := u.replaceList(listOf(keep)); err != nil {
		return err
	}
	for _, r := range old {
		r.close()
	}
	u.t.runs, u.written, u.batch = keep, nil, batch{}
	u.t.dropped.Store(false)
	u.sweep(keep)
	return nil
}

// split returns the runs that stay, and those that are merged into one: the smaller ones,
// so that each that stays is larger by far than all that follow, and those of which most
// is dead.
func split(all []*run) (keep, old []*run) {
	slices.SortStableFunc(all, func(a, b *run) int { return cmp.Compare(b.count, a.count) })
	from := similar(len(all), func(i int) int64 { return all[i].count })
	for i, r := range all {
		if i >= from && len(all)-from > 1 || 2*r.dead() > r.count {
			old = append(old, r)
		} else {
			keep = append(keep, r)
		}
	}
	return keep, old
}

// replaceList puts the list in its place.
func (u *Update) replaceList(list []byte) error {
	f, err := os.CreateTemp(u.t.dir, runPrefix+"*.list")
	if err != nil {
		return err
	}
	_, err = f.Write(list)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(u.t.dir, listName))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // else the next update does
	}
	return err
}

// sweep removes what is no part of the table, as of an update that was killed.
func (u *Update) sweep(keep []*run) {
	entries, err := os.ReadDir(u.t.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, runPrefix) && !slices.ContainsFunc(keep, func(r *run) bool { return r.name == name }) {
			_ = os.Remove(filepath.Join(u.t.dir, name)) // else the next update does
		}
	}
}

// Close ends the update; what was not committed is given up.
func (u *Update) Close() {
	for _, r := range u.written {
		r.close()
		_ = os.Remove(filepath.Join(u.t.dir, r.name)) // else the next update does
	}
	u.written = nil
	if u.lock != nil {
		_ = sys.Unlock(u.lock)
		_ = u.lock.Close() // nothing is in it
		u.lock = nil
	}
}

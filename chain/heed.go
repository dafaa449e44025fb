// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// deletingPause is between two looks at a prune that is deleting what is needed.
	deletingPause = 2 * time.Second
	// deletingTries bounds them: about half an hour.
	deletingTries = 900
)

// marks is what a writer knows of the mark: as it was read when its lease stood, or
// later.
type marks struct {
	repo *Repository

	change chan struct{} // has a token while the mark is read or struck from
	mu     sync.RWMutex
	mark   *Mark            // nil: none stands
	list   archive.Ref      // whose names these are
	names  []archive.Digest // of the objects in the list, sorted

	// What a host has struck from a mark, which stays as it is: see [Strike].
	run        string // whose that is
	struck     map[string]bool
	struckFrom string // the uuid of the mark
}

// read reads the mark, and its list if it is another one.
func (k *marks) read(ctx context.Context) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	defer k.end()
	return k.reread(ctx)
}

// begin waits until nobody else is reading the mark, or striking from it.
func (k *marks) begin(ctx context.Context) error {
	select {
	case k.change <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *marks) end() { <-k.change }

// reread needs begin.
func (k *marks) reread(ctx context.Context) error {
	m, err := k.repo.Mark(ctx)
	if errors.Is(err, ErrNoMark) {
		m, err = nil, nil
	}
	if err != nil {
		return err
	}
	return k.take(ctx, m)
}

// take makes m the mark that is known.
func (k *marks) take(ctx context.Context, m *Mark) error {
	if m != nil && !m.Standing() {
		m = nil
	}
	names, list := k.names, k.list
	switch {
	case m == nil:
		names, list = nil, archive.Ref{}
	case m.List != list:
		names, list = nil, m.List
		for line, err := range k.repo.markLines(ctx, list) {
			if archive.IsDamage(err) {
				return k.gone(ctx, m, err)
			}
			if err != nil {
				return err
			}
			if line.object {
				names = append(names, keyDigest(line.key))
			}
		}
		slices.SortFunc(names, compareDigests)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mark, k.names, k.list = m, names, list
	return nil
}

// gone: the list of a mark can't be read. If the mark is another by now, that is why.
func (k *marks) gone(ctx context.Context, m *Mark, why error) error {
	now, err := k.repo.Mark(ctx)
	if err != nil && !errors.Is(err, ErrNoMark) {
		return err
	}
	if now != nil && now.UUID == m.UUID && now.List == m.List && now.Standing() {
		return fmt.Errorf("what a prune means to delete can't be known (imgbackup prune ends that prune): %w", why)
	}
	return k.take(ctx, now)
}

func compareDigests(a, b archive.Digest) int { return slices.Compare(a[:], b[:]) }

// keyDigest is what an object is looked up by: the digest in its key.
func keyDigest(key string) archive.Digest {
	if _, d, ok := archive.ParseKey(key); ok {
		return d
	}
	return archive.Digest{}
}

// stands returns the mark that stands, or nil.
func (k *marks) stands() *Mark {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.mark
}

// has reports whether an object is in the mark.
func (k *marks) has(key string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.mark == nil {
		return false
	}
	if _, ok := slices.BinarySearchFunc(k.names, keyDigest(key), compareDigests); !ok {
		return false
	}
	if k.struckFrom == k.mark.UUID && k.struck[key] {
		return false
	}
	_, struck := slices.BinarySearch(k.mark.Struck, key)
	return !struck
}

// rely is [Hold.Rely].
func (k *marks) rely(ctx context.Context, keys []string) error {
	if !protocol.Keeps(ctx, protocol.Heed) {
		return nil
	}
	for try := 0; ; try++ {
		marked := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return !k.has(key) })
		if len(marked) == 0 {
			return nil
		}
		wait, err := k.strike(ctx, marked)
		if err != nil {
			return err
		}
		if wait == nil {
			continue
		}
		if try == deletingTries {
			return fmt.Errorf("%s is being deleted since %s by a prune on host %s (process %d), which does not come to an end; imgbackup prune takes it over once it has ended",
				marked[0], wait.Since.Format(time.RFC3339), wait.Host.Name, wait.PID)
		}
		if try == 0 {
			k.repo.tell("a prune on host %s (process %d) is deleting what this run would use: it is waited for, up to %s", wait.Host.Name, wait.PID, deletingTries*deletingPause)
		}
		if err := protocol.Pause(ctx, deletingPause); err != nil {
			return err
		}
		if err := k.read(ctx); err != nil {
			return err
		}
	}
}

// strike takes objects out of the mark, or reads it anew where it was changed. It
// returns a mark that is deleting, which has to be waited for.
func (k *marks) strike(ctx context.Context, keys []string) (wait *Mark, err error) {
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	m := k.stands()
	if m == nil {
		return nil, nil
	}
	if m.State == MarkDeleting && k.repo.manages() != nil {
		return m, nil // a manager ends it
	}
	if m.State == MarkDeleting {
		done, err := k.finish(ctx, m)
		if err == nil && done {
			m, err = nil, k.reread(ctx)
		}
		return m, err
	}
	// Others may have struck some of them while this waited.
	keys = slices.DeleteFunc(keys, func(key string) bool { return !k.has(key) })
	if len(keys) == 0 {
		return nil, nil
	}
	if k.repo.manages() != nil {
		return nil, k.strikeBeside(ctx, m, keys)
	}
	m, err = k.repo.Strike(ctx, m, keys)
	if errors.Is(err, ErrMarkChanged) {
		return nil, k.reread(ctx)
	}
	if err != nil {
		return nil, err
	}
	return nil, k.take(ctx, m)
}

// finish does the rest of what a prune was deleting that has certainly ended, and reports
// whether it did anything.
func (k *marks) finish(ctx context.Context, m *Mark) (bool, error) {
	m, ended, err := k.repo.MarkEnded(ctx, m)
	if err != nil || !ended {
		return false, err
	}
	err = k.finishAll(ctx, m)
	if errors.Is(err, ErrMarkChanged) {
		err = nil // another does it
	}
	return true, err
}

func (k *marks) finishAll(ctx context.Context, m *Mark) error {
	m, err := k.repo.TakeOver(ctx, m)
	if err != nil {
		return err
	}
	list, err := k.repo.MarkList(ctx, m)
	if err != nil {
		return err
	}
	struck, err := k.repo.Struck(ctx, m)
	if err != nil {
		return err
	}
	list.Objects = slices.DeleteFunc(list.Objects, func(key string) bool { return struck[key] != "" })
	d := &Deleting{Repo: k.repo, Mark: m}
	for batch := range slices.Chunk(list.Objects, objstore.MaxBatch) {
		refused, err := d.Batch(ctx, batch)
		if err != nil {
			return err
		}
		if refused != nil {
			return fmt.Errorf("finish what a prune was deleting: %w", refused)
		}
	}
	_, err = d.End(ctx)
	return err
}

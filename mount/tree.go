// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

const (
	// freshFor is how long what is known of a domain's checkpoints is shown before the
	// repository is asked again: a listing of 1,000 is one question, not 1,000.
	freshFor = 10 * time.Second
	// latest is the name of the link to the newest checkpoint, unless one is called so.
	latest = "latest"
	suffix = ".raw"
)

// entry is what the tree knows of a checkpoint.
type entry struct {
	name, uuid string
	created    time.Time
	sequence   int64
	disks      []diskEntry
}

type diskEntry struct {
	name string // also of the file, before its suffix
	size int64  // bytes
}

func (e *entry) disk(name string) (diskEntry, bool) {
	i := slices.IndexFunc(e.disks, func(d diskEntry) bool { return d.name == name })
	if i < 0 {
		return diskEntry{}, false
	}
	return e.disks[i], true
}

// shelf is the checkpoints with data of one domain, as the repository last told of them. It
// is safe for concurrent use.
type shelf struct {
	repo   *chain.Repository
	domain string
	fresh  time.Duration // how long it is not asked again
	note   func(msg string)

	mu      sync.Mutex
	asked   time.Time
	entries []entry // in the order of their sequence
	unread  bool    // one more is there, or several, which can't be read
}

// all returns the domain's checkpoints; none, where there is no such domain. They are not to
// be written into.
func (s *shelf) all(ctx context.Context) (entries []entry, unread bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.asked.IsZero() && time.Since(s.asked) < s.fresh {
		return s.entries, s.unread, nil
	}
	asked := time.Now()
	ms, damaged, err := s.repo.Manifests(ctx, s.domain)
	if err != nil {
		return nil, false, fmt.Errorf("domain %s: %w", s.domain, err)
	}
	for _, err := range damaged {
		s.note(fmt.Sprintf("domain %s: a checkpoint is not shown: %v", s.domain, err))
	}
	entries = nil
	for _, m := range ms {
		if m.Kind == chain.KindArchive {
			entries = append(entries, entryOf(m))
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.sequence, b.sequence), strings.Compare(a.uuid, b.uuid)) // as chain.Newest has it
	})
	s.entries, s.unread, s.asked = entries, len(damaged) > 0, asked
	return s.entries, s.unread, nil
}

func entryOf(m *chain.Manifest) entry {
	e := entry{name: m.Checkpoint, uuid: m.UUID, created: m.Created, sequence: m.Sequence}
	for i := range m.Disks {
		d := &m.Disks[i]
		if len(d.Maps) > 0 && chain.CheckName(d.Name) == nil {
			e.disks = append(e.disks, diskEntry{d.Name, d.Size})
		}
	}
	return e
}

// find returns the checkpoint of that name.
func (s *shelf) find(ctx context.Context, name string) (entry, bool, error) {
	entries, _, err := s.all(ctx)
	if err != nil {
		return entry{}, false, err
	}
	i := slices.IndexFunc(entries, func(e entry) bool { return e.name == name })
	if i < 0 {
		return entry{}, false, nil
	}
	return entries[i], true, nil
}

// newest returns the name that the link latest leads to; false: there is no such link, since
// there is no checkpoint, one is called so, or one that may be the newest can't be read.
func (s *shelf) newest(ctx context.Context) (string, bool, error) {
	entries, unread, err := s.all(ctx)
	if err != nil || unread || len(entries) == 0 {
		return "", false, err
	}
	if slices.ContainsFunc(entries, func(e entry) bool { return e.name == latest }) {
		return "", false, nil
	}
	return entries[len(entries)-1].name, true, nil
}

// diskOf is the name of the disk that a file is named after.
func diskOf(file string) (string, bool) { return strings.CutSuffix(file, suffix) }

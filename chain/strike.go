// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// A mark counts only from a manager, and what stands in one must be nobody else's to take away:
// else a host that was taken could put back an older state of it, without what another host
// has struck. So a host strikes by an object of its own, beside its leases, which can only add
// to what stays. A prune lists these after its mark deletes, and before it deletes anything;
// a host that has put one looks at the mark again, and relies on nothing unless that was
// still a plan. So one of the two sees the other.

// StrikeFormat is the value of a strike's field "format".
const StrikeFormat = "imgbackup-strike"

// maxStrike bounds the objects of one strike: what a sealed object holds.
const maxStrike = 1 << 19

const strikesFolder = "strikes"

// Strike is what a run of a host needs of what a prune has marked.
type Strike struct {
	Head
	UUID string   `json:"uuid"` // of the run, and its lease
	Mark string   `json:"mark"` // the uuid of the mark
	Keys []string `json:"keys"` // sorted, at most maxStrike

	key string
}

// strikeKey is leases/HOST/strikes/UUID.json.
func strikeKey(folder, id string) string {
	return leasesPrefix + folder + "/" + strikesFolder + "/" + id + jsonSuffix
}

func (s *Strike) validate() error {
	var c checker
	c.nilErr("head", s.CheckHead(StrikeFormat))
	c.nilErr("uuid", validUUID(s.UUID))
	c.nilErr("mark", validUUID(s.Mark))
	c.that(len(s.Keys) <= maxStrike, "%d objects are struck", len(s.Keys))
	c.that(sortedOnce(s.Keys), "what is struck is not sorted")
	for _, key := range s.Keys {
		c.that(markable(key), "%.80q is struck", key)
	}
	return c.err
}

// putStrike stores what a run needs of a mark, in the place of what it said before.
func (r *Repository) putStrike(ctx context.Context, s *Strike) error {
	folder, err := r.Folder()
	if err != nil {
		return err
	}
	s.Format, s.Version, s.key = StrikeFormat, 1, strikeKey(folder, s.UUID)
	if len(s.Keys) > maxStrike {
		return fmt.Errorf("%d objects that are needed are marked to be pruned, more than the %d that can be kept from it: run it again when the prune is over", len(s.Keys), maxStrike)
	}
	if err := errors.Join(r.CheckWritable(), s.validate()); err != nil {
		return err
	}
	data, err := r.seal(s.key, s)
	if err != nil {
		return fmt.Errorf("%s: %w", s.key, err)
	}
	return r.Store.Put(ctx, s.key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
}

// strikes reads all strikes. One that can't be believed is an error: whoever put it, or what
// stood there before, may need what is to be deleted.
func (r *Repository) strikes(ctx context.Context) ([]*Strike, error) {
	if r.authority() == nil {
		return nil, nil // all strike from the mark itself
	}
	keys, err := r.list(ctx, leasesPrefix, KeyStrike)
	if err != nil {
		return nil, err
	}
	all, unusable, err := readEach(ctx, keys, func(ctx context.Context, k Key) (*Strike, error) {
		s := &Strike{key: strikeKey(k.Host, k.Name)}
		data, err := readSealed(ctx, r.Store, s.key)
		if err == nil {
			err = r.openAs(data, s.key, StrikeFormat, s)
		}
		if err != nil {
			return nil, err
		}
		if err = s.validate(); err == nil && s.UUID != k.Name {
			err = errors.New("it is another run's")
		}
		if err != nil {
			return nil, archive.Damaged(s.key, err)
		}
		return s, nil
	})
	if err == nil && len(unusable) > 0 {
		err = fmt.Errorf("what hosts need of what is marked can't be known (remove what is damaged when no backup of that host is at work): %w", errors.Join(unusable...))
	}
	return all, err
}

// Struck returns what hosts have struck from a mark that deletes, by key, and the name of
// whose run it was: these must not be deleted.
func (r *Repository) Struck(ctx context.Context, m *Mark) (map[string]string, error) {
	all, err := r.strikes(ctx)
	struck := make(map[string]string)
	if !protocol.Keeps(ctx, protocol.Strikes) {
		return struck, err
	}
	for _, s := range all {
		if s.Mark != m.UUID {
			continue
		}
		for _, key := range s.Keys {
			struck[key] = ParseKey(s.key).Host
		}
	}
	return struck, err
}

// RemoveStrikes removes those from a mark that is done.
func (r *Repository) RemoveStrikes(ctx context.Context, done *Mark) error {
	all, err := r.strikes(ctx)
	for _, s := range all {
		if s.Mark == done.UUID {
			err = errors.Join(err, r.Store.Delete(ctx, s.key))
		}
	}
	return err
}

// strikeBeside strikes as a host does, for the run id, and takes the mark as it is then.
func (k *marks) strikeBeside(ctx context.Context, m *Mark, keys []string) error {
	if k.struckFrom != m.UUID {
		k.struck = nil
	}
	all := maps.Clone(k.struck)
	if all == nil {
		all = make(map[string]bool)
	}
	for _, key := range keys {
		all[key] = true
	}
	if err := k.repo.putStrike(ctx, &Strike{UUID: k.run, Mark: m.UUID, Keys: slices.Sorted(maps.Keys(all))}); err != nil {
		return err
	}
	now := m
	if protocol.Keeps(ctx, protocol.Look) {
		var err error
		if now, err = k.repo.Mark(ctx); errors.Is(err, ErrNoMark) {
			now, err = nil, nil
		}
		if err != nil {
			return err
		}
	}
	if now != nil && now.UUID == m.UUID && now.State == MarkMarked {
		k.mu.Lock()
		k.struck, k.struckFrom = all, m.UUID
		k.mu.Unlock()
	}
	return k.take(ctx, now)
}

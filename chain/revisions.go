// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// Revision is one of the versions of a manifest, where the store keeps them.
type Revision struct {
	objstore.ObjectVersion
	Domain, Checkpoint string
	Manifest           *Manifest // nil: it is a marker, a void, or can't be read
	Err                error     // why it can't be read: an archive.DamageError or a NewerError
	Signer             string    // who has signed it, in an encrypted repository
	Counts             bool      // it is what the checkpoint is, whatever lies on top of it

	slot *Slot
}

// Revisions reads all versions of a domain's manifests, or of one ("" is all): sorted by name,
// of each the newest first. A store that keeps none is an [objstore.UnsupportedError].
func (r *Repository) Revisions(ctx context.Context, domain, checkpoint string) ([]Revision, error) {
	versions, err := r.versions()
	if err != nil {
		return nil, err
	}
	prefix := checkpointsPrefix(domain)
	if checkpoint != "" {
		prefix = ManifestKey(domain, checkpoint)
	}
	of, err := manifestVersions(ctx, versions, prefix)
	if err != nil {
		return nil, err
	}
	var all []Revision
	for _, list := range of {
		for _, v := range list {
			k := ParseKey(v.Key)
			all = append(all, Revision{ObjectVersion: v, Domain: k.Domain, Checkpoint: k.Name})
		}
	}
	if err := r.readRevisions(ctx, versions, all); err != nil {
		return nil, err
	}
	for first := 0; first < len(all); {
		end := first + 1
		for end < len(all) && all[end].Key == all[first].Key {
			end++
		}
		if i := r.counting(all[first:end]); i >= 0 {
			all[first+i].Counts = true
		}
		first = end
	}
	return all, nil
}

// YoungRevisions reads the versions of all manifests, also below markers and whatever was put on
// top of them, and returns those of checkpoints that were made, or first stored, at or after
// since. Those that prove themselves not, or can't be read by this program, are among them, if
// they were stored since, or are on top. What was put on top later is no excuse for what is
// below to be lost.
func (r *Repository) YoungRevisions(ctx context.Context, since time.Time) ([]Revision, error) {
	versions, err := r.versions()
	if err != nil {
		return nil, err
	}
	of, err := manifestVersions(ctx, versions, domainsPrefix)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	var all []Revision
	for _, list := range of {
		known[list[0].Key] = true
		k := ParseKey(list[0].Key)
		for _, v := range list {
			if !v.Marker && (v.Latest || v.Stored.After(since.Add(-clockLeeway))) {
				all = append(all, Revision{ObjectVersion: v, Domain: k.Domain, Checkpoint: k.Name})
			}
		}
	}
	if len(all) == 0 {
		if err := r.confirmListing(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.readRevisions(ctx, versions, all); err != nil {
		return nil, err
	}
	if err := r.checkParents(ctx, known, all); err != nil {
		return nil, err
	}
	first := make(map[string]time.Time) // when each checkpoint was first stored
	for _, v := range all {
		if m := v.Manifest; m != nil && (first[m.UUID].IsZero() || v.Stored.Before(first[m.UUID])) {
			first[m.UUID] = v.Stored
		}
	}
	return slices.DeleteFunc(all, func(v Revision) bool {
		switch m := v.Manifest; {
		case m != nil:
			return m.Created.Before(since) && first[m.UUID].Before(since)
		case v.Err != nil:
			return false
		}
		return true // a void
	}), nil
}

// clockLeeway is how far a store's clock may be behind a host's.
const clockLeeway = 24 * time.Hour

// checkParents sees that no manifest stands of which the listing has no version at all, though
// others descend from it.
func (r *Repository) checkParents(ctx context.Context, known map[string]bool, all []Revision) error {
	c := &census{repo: r, read: known, parents: make(map[string]struct{})}
	for _, v := range all {
		if v.Manifest != nil {
			c.descends(v.Manifest)
		}
	}
	for _, key := range c.unread() {
		k := ParseKey(key)
		if _, err := r.Manifest(ctx, k.Domain, k.Name); err == nil {
			return &ListingError{Object: key}
		} else if !errors.Is(err, ErrNoCheckpoint) && !unusable(err) {
			return err
		}
	}
	return nil
}

func (r *Repository) versions() (objstore.Versions, error) {
	if v, ok := objstore.As[objstore.Versions](r.Store); ok {
		return v, nil
	}
	return nil, &objstore.UnsupportedError{Ability: "tell what stood there before: versions are kept by buckets"}
}

// manifestVersions are those of the manifests under a prefix, sorted by key, the newest first.
func manifestVersions(ctx context.Context, s objstore.Versions, prefix string) ([][]objstore.ObjectVersion, error) {
	of := make(map[string][]objstore.ObjectVersion)
	var keys []string
	for v, err := range s.ListVersions(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list the versions of %s: %w", prefix, err)
		}
		if ParseKey(v.Key).Kind != KeyManifest {
			continue
		}
		if of[v.Key] == nil {
			keys = append(keys, v.Key)
		}
		of[v.Key] = append(of[v.Key], v)
	}
	slices.Sort(keys)
	var all [][]objstore.ObjectVersion
	for _, key := range keys {
		below.Sort(of[key])
		all = append(all, of[key])
	}
	return all, nil
}

// readRevisions reads what each of them is.
func (r *Repository) readRevisions(ctx context.Context, s objstore.Versions, all []Revision) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i := range all {
		if all[i].Marker {
			continue
		}
		g.Go(func() error { return r.readRevision(gctx, s, &all[i]) })
	}
	return g.Wait()
}

func (r *Repository) readRevision(ctx context.Context, s objstore.Versions, rev *Revision) error {
	data, err := readOld(ctx, s, rev.ObjectVersion)
	if err == nil {
		rev.slot, err = r.parseSlot(data, rev.Domain, rev.Checkpoint)
	}
	switch {
	case unusable(err):
		rev.Err, rev.slot = err, nil
	case errors.Is(err, objstore.ErrNotFound): // removed meanwhile
		rev.Err = archive.Damaged(rev.Key, err)
	case err != nil:
		return fmt.Errorf("version %s of %s: %w", rev.ID, rev.Key, err)
	default:
		rev.Manifest = rev.slot.Manifest
		rev.Signer = r.signerOf(rev.Key, data)
	}
	return nil
}

// readOld reads a version of a sealed object.
func readOld(ctx context.Context, s objstore.Versions, v objstore.ObjectVersion) ([]byte, error) {
	if v.Size > maxStored {
		return nil, archive.Damaged(v.Key, objstore.ErrTooLarge)
	}
	in, err := s.GetOld(ctx, v.Key, v.ID, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(in, v.Size+1))
	return data, errors.Join(err, in.Close())
}

// counting returns which of the versions of a manifest (the newest first) is what the
// checkpoint is; -1: none. It is above the newest marker, which forgets the checkpoint. Where
// nothing is signed it is the newest that proves itself by its seal: who can store there can
// make such. What is signed does not become another by what is put on top: the first that
// stands since the newest void is the checkpoint, and of its revisions the highest counts.
func (r *Repository) counting(all []Revision) int {
	if i := slices.IndexFunc(all, func(v Revision) bool { return v.Marker }); i >= 0 {
		all = all[:i]
	}
	signed := r.Access != nil && r.Access.Authority != nil
	best := -1
	for i := range slices.Backward(all) {
		v := &all[i]
		switch {
		case v.slot == nil:
		case !signed, best < 0, v.slot.void != nil && !repeated(all[i+1:], v.slot.void):
			best = i
		case bytes.Equal(v.slot.data, all[best].slot.data): // it was put on top again
			best = i
		case v.Manifest == nil: // an old void, put there once more
		case all[best].Manifest == nil, v.Manifest.UUID == all[best].Manifest.UUID && v.Manifest.Revision > all[best].Manifest.Revision:
			best = i
		}
	}
	if best > 0 && all[0].slot != nil && bytes.Equal(all[0].slot.data, all[best].slot.data) {
		return 0 // it is on top again
	}
	return best
}

// repeated reports whether a void stood there before.
func repeated(older []Revision, v *Void) bool {
	return slices.ContainsFunc(older, func(o Revision) bool { return o.slot != nil && o.slot.void != nil && o.slot.void.UUID == v.UUID })
}

// Revision reads one version of a manifest, which may be what somebody has put there: it
// proves itself, and no more.
func (r *Repository) Revision(ctx context.Context, domain, checkpoint, id string) (*Manifest, error) {
	all, err := r.Revisions(ctx, domain, checkpoint)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		switch {
		case v.ID != id || v.Checkpoint != checkpoint:
		case v.Err != nil:
			return nil, v.Err
		case v.Manifest != nil:
			return v.Manifest, nil
		default:
			return nil, fmt.Errorf("version %s of checkpoint %s is none: there it was removed", id, checkpoint)
		}
	}
	return nil, &toldError{
		text: fmt.Sprintf("checkpoint %s of domain %s has no version %s (imgbackup list %s --revisions shows them)", checkpoint, domain, id, domain),
		is:   []error{ErrNoCheckpoint, objstore.ErrNotFound},
	}
}

// Beneath is r for who reads, in a store that keeps versions: what somebody has put on top of
// what checkpoints need does not hide it. note is told of each object that is read from below,
// from several goroutines; it may be nil.
func (r *Repository) Beneath(note func(key, id string)) *Repository {
	return r.lower(below.Options{Digest: digestOf, Note: note})
}

// Underneath is Beneath for who reads what is known to be wrong on top: nil, where the store
// keeps no versions, or, without object lock, refuses to tell of them: that takes a right
// which nothing else needs.
func (r *Repository) Underneath(ctx context.Context) (*Repository, error) {
	versions, err := r.versions()
	if err != nil {
		return nil, nil
	}
	for _, err := range versions.ListVersions(ctx, ConfigKey, "") {
		if err != nil && objstore.Permanent(err) && r.Config.ObjectLock == nil {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		break
	}
	out := *r
	out.Store = objstore.Direct(r.Store)
	return out.lower(below.Options{Digest: digestOf, Always: true}), nil
}

func (r *Repository) lower(o below.Options) *Repository {
	versions, err := r.versions()
	if err != nil {
		return r
	}
	out := *r
	note := o.Note
	out.Store = below.New(r.Store, o)
	if r.Config.ObjectLock != nil {
		out.beneath = &beneath{versions: versions, note: note, of: make(map[string]map[string][]objstore.ObjectVersion)}
	}
	return &out
}

func digestOf(key string) ([32]byte, bool) {
	_, name, ok := archive.ParseKey(key)
	return name, ok
}

// beneath knows which manifests have several versions.
type beneath struct {
	versions objstore.Versions
	note     func(key, id string)

	mu   sync.Mutex
	of   map[string]map[string][]objstore.ObjectVersion // by domain and key
	told map[string]bool
}

// several are the versions of a manifest that has more than one above the newest marker; nil: it has not.
func (b *beneath) several(ctx context.Context, domain, key string) ([]objstore.ObjectVersion, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := b.of[domain]
	if of == nil {
		all, err := manifestVersions(ctx, b.versions, checkpointsPrefix(domain))
		if err != nil {
			return nil, err
		}
		of = make(map[string][]objstore.ObjectVersion)
		for _, list := range all {
			if len(list) > 1 && !list[0].Marker && !list[1].Marker {
				of[list[0].Key] = list
			}
		}
		b.of[domain] = of
	}
	return of[key], nil
}

func (b *beneath) tell(key, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told == nil {
		b.told = make(map[string]bool)
	}
	if b.note != nil && !b.told[key] {
		b.note(key, id)
	}
	b.told[key] = true
}

// beneathSlot is the slot as it counts, where something else may lie on top of it; nil: what
// is on top counts, or nothing does.
func (r *Repository) beneathSlot(ctx context.Context, domain, checkpoint string) (*Slot, error) {
	if r.beneath == nil || checkSlotNames(domain, checkpoint) != nil {
		return nil, nil
	}
	key := ManifestKey(domain, checkpoint)
	versions, err := r.beneath.several(ctx, domain, key)
	if err != nil || versions == nil {
		return nil, err
	}
	var all []Revision
	for _, v := range versions {
		if v.Marker {
			break
		}
		all = append(all, Revision{ObjectVersion: v, Domain: domain, Checkpoint: checkpoint})
	}
	if err := r.readRevisions(ctx, r.beneath.versions, all); err != nil {
		return nil, err
	}
	i := r.counting(all)
	if i < 0 {
		return nil, nil
	}
	if !all[i].Latest {
		r.beneath.tell(key, all[i].ID)
	}
	return all[i].slot, nil
}

// Covered returns the manifests that count and have something else on top: of a domain, or ("")
// of all. A store that keeps no versions is an [objstore.UnsupportedError].
func (r *Repository) Covered(ctx context.Context, domain string) ([]Revision, error) {
	versions, err := r.versions()
	if err != nil {
		return nil, err
	}
	prefix := domainsPrefix
	if domain != "" {
		prefix = checkpointsPrefix(domain)
	}
	of, err := manifestVersions(ctx, versions, prefix)
	if err != nil {
		return nil, err
	}
	var covered []Revision
	for _, list := range of {
		if n := slices.IndexFunc(list, func(v objstore.ObjectVersion) bool { return v.Marker }); n >= 0 {
			list = list[:n]
		}
		if len(list) < 2 {
			continue
		}
		k := ParseKey(list[0].Key)
		all := make([]Revision, len(list))
		for i, v := range list {
			all[i] = Revision{ObjectVersion: v, Domain: k.Domain, Checkpoint: k.Name}
		}
		if err := r.readRevisions(ctx, versions, all); err != nil {
			return nil, err
		}
		if i := r.counting(all); i > 0 {
			covered = append(covered, all[i])
		}
	}
	return covered, nil
}

// Uncover puts what counts as a manifest on top again, byte by byte, if it is still not there.
func (r *Repository) Uncover(ctx context.Context, v Revision) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	stands, err := objstore.ReadAll(ctx, r.Store, v.Key, maxStored)
	if err != nil {
		return err
	}
	if bytes.Equal(stands, v.slot.data) {
		return nil
	}
	return r.swap(ctx, v.Key, stands, v.slot.data, nil)
}

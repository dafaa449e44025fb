// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// MarkFormat is the value of a mark's field "format".
const MarkFormat = "imgbackup-mark"

// MarkKey is the key of the one mark of a repository.
const MarkKey = prunePrefix + "mark.json"

// The states of a mark.
const (
	MarkMarked   = "marked"   // a plan: who needs what is in it may strike it
	MarkDeleting = "deleting" // the list is fixed, and its objects go
	MarkDone     = "done"     // nothing is marked any more; the next prune takes its place
)

// maxStruck bounds the objects that are struck from a mark one by one; who needs more
// ends it.
const maxStruck = 1 << 16

// ErrNoMark says that a repository has never been pruned.
var ErrNoMark = errors.New("there is no mark")

// ErrMarkChanged says that a mark is not as it was read any more: struck from, taken
// over, or done. It has to be read again.
var ErrMarkChanged = errors.New("the mark was changed meanwhile")

// Mark is what a prune means to delete. There is one in a repository, at one key,
// and it is only ever replaced conditionally, by its next revision; when its prune
// is over it stays as done, so that nothing unconditional is ever done to it.
type Mark struct {
	Head
	UUID     string `json:"uuid"`     // of this prune; stays when another takes it over
	Revision int64  `json:"revision"` // one more with each replace
	State    string `json:"state"`
	Owner    string `json:"owner"` // a UUID: of the run that it belongs to
	Process         // of its owner
	// Released says that its owner has ended, and that any other may take it over.
	Released bool      `json:"released,omitempty"`
	Since    time.Time `json:"since"` // UTC; for people
	// List names an object of [MarkList].
	List archive.Ref `json:"list"`
	// Struck are keys of the list that stay, since somebody needs them; sorted.
	Struck []string `json:"struck,omitempty"`
	// Listed says that the leases were listed after the mark stood; Leases are those that
	// have to go before anything is deleted, sorted by key.
	Listed bool        `json:"listed"`
	Leases []SeenLease `json:"leases,omitempty"`
	// Suspected is when another prune found the mark as it is, and could not tell whether
	// its owner has ended; its owner's next change takes it away.
	Suspected *Suspicion `json:"suspected,omitempty"`

	data []byte // as it stands
}

// SeenLease is a lease that a prune waits for. Who reads it again, on the same boot of
// the same machine, knows for how long it has not changed.
type SeenLease struct {
	Key    string         `json:"key"`
	SHA256 archive.Digest `json:"sha256"`            // as it was seen; zero: it could not be read
	BootID string         `json:"boot_id,omitempty"` // of the machine that saw it first so
	Since  int64          `json:"since"`             // then, in seconds since that boot
}

// Suspicion is a time by the clock of one machine that nobody sets.
type Suspicion struct {
	BootID string `json:"boot_id"`
	Since  int64  `json:"since"` // seconds since that boot
}

// Standing reports whether anything is marked.
func (m *Mark) Standing() bool { return m.State != MarkDone }

// MarkStandsError says that another prune has its mark in the repository.
type MarkStandsError struct {
	Mark *Mark
	// Delay is for how long a request to the store may be on its way after its client
	// has ended; see [objstore.Delayed].
	Delay time.Duration
}

func (e *MarkStandsError) Error() string {
	since := e.Mark.Since.Format(time.RFC3339)
	if e.Mark.Released && e.Delay == 0 {
		return fmt.Sprintf("a prune that began on %s at %s has ended and left what it marked to the next one: imgbackup prune goes on with it", e.Mark.Host.Name, since)
	}
	text := fmt.Sprintf("a prune is at work on %s (process %d) since %s", e.Mark.Host.Name, e.Mark.PID, since)
	if e.Mark.State == MarkDeleting && e.Delay > 0 {
		text += fmt.Sprintf("; if it was cut off, what it sent last may still arrive at the store: %.0f minutes after this host"+
			" has seen so first a prune goes on with it", e.Delay.Minutes())
	}
	return text
}

// Validate says what is wrong with a mark, or nil.
func (m *Mark) Validate() error {
	var c checker
	c.nilErr("head", m.CheckHead(MarkFormat))
	c.nilErr("uuid", validUUID(m.UUID))
	c.that(m.Revision >= 1 && m.Revision < maxSequence, "revision is %d", m.Revision)
	c.oneOf("state", m.State, MarkMarked, MarkDeleting, MarkDone)
	c.nilErr("owner", validUUID(m.Owner))
	m.validate(&c)
	c.time("since", m.Since)
	c.ref("list", m.List)
	c.that(m.List.Length <= maxMarkList, "the list has %d bytes", m.List.Length)
	c.that(len(m.Struck) <= maxStruck, "%d objects are struck", len(m.Struck))
	c.that(sortedOnce(m.Struck), "what is struck is not sorted")
	for _, key := range m.Struck {
		c.that(markable(key), "%.80q is struck", key)
	}
	if m.Suspected != nil {
		c.text("suspected.boot_id", m.Suspected.BootID, 255)
		c.that(m.Suspected.Since >= 0, "suspected since %d", m.Suspected.Since)
	}
	c.that(m.Listed || len(m.Leases) == 0, "leases that were not listed")
	last := ""
	for _, l := range m.Leases {
		c.that(ParseKey(l.Key).Kind == KeyLease && l.Key > last, "%.80q is no lease, or not sorted", l.Key)
		c.text("boot_id", l.BootID, maxShort)
		c.atLeast("since", l.Since, 0)
		last = l.Key
	}
	if c.err != nil {
		return fmt.Errorf("invalid mark: %w", c.err)
	}
	return nil
}

func sortedOnce(s []string) bool {
	return slices.IsSortedFunc(s, func(a, b string) int {
		if a == b {
			return -1 // no two are the same
		}
		return strings.Compare(a, b)
	})
}

// Mark reads the mark, also one that is done. There may be none: ErrNoMark.
func (r *Repository) Mark(ctx context.Context) (*Mark, error) {
	data, err := readSealed(ctx, r.Store, MarkKey)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, ErrNoMark
	}
	if err != nil {
		return nil, damagedMark(fmt.Errorf("read the mark of a prune: %w", err))
	}
	m, err := r.parseMark(data)
	return m, damagedMark(err)
}

// damagedMark adds to the error of a mark that is damaged what a person can do.
func damagedMark(err error) error {
	if !archive.IsDamage(err) {
		return err
	}
	return fmt.Errorf("%w: what a prune means to delete can't be known"+
		" (when no prune is at work any more, on any host: imgbackup prune --take-over)", err)
}

func (r *Repository) parseMark(data []byte) (*Mark, error) {
	var m Mark
	if err := r.openAs(data, MarkKey, MarkFormat, &m); err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, archive.Damaged(MarkKey, err)
	}
	m.data = data
	return &m, nil
}

// CreateMark stores a list and a mark of it, if no other stands: else the error is a
// *MarkStandsError.
func (r *Repository) CreateMark(ctx context.Context, list *MarkList) (*Mark, error) {
	self, err := r.Self()
	if err != nil {
		return nil, err
	}
	before, err := r.Mark(ctx)
	if err != nil && !errors.Is(err, ErrNoMark) {
		return nil, err
	}
	if before != nil && before.Standing() {
		return nil, &MarkStandsError{Mark: before}
	}
	ref, err := r.putMarkList(ctx, list)
	if err != nil {
		return nil, err
	}
	m := &Mark{
		Head: Head{Format: MarkFormat, Version: 1}, UUID: NewUUID(), Revision: 1, State: MarkMarked,
		Owner: NewUUID(), Process: self, Since: now(), List: ref,
	}
	if !protocol.Keeps(ctx, protocol.Order) {
		if m.Leases, err = r.seeLeases(ctx); err != nil {
			return nil, err
		}
		m.Listed = true
	}
	m, err = r.storeMark(ctx, before, m)
	if !errors.Is(err, ErrMarkChanged) {
		return m, err
	}
	// Somebody was faster.
	stands, rerr := r.Mark(ctx)
	if rerr != nil || !stands.Standing() {
		return nil, errors.Join(err, rerr)
	}
	return nil, &MarkStandsError{Mark: stands}
}

// storeMark stores m in the place of before; nil: where none stands.
func (r *Repository) storeMark(ctx context.Context, before, m *Mark) (*Mark, error) {
	if err := errors.Join(r.CheckWritable(), m.Validate()); err != nil {
		return nil, err
	}
	data, err := r.seal(MarkKey, m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", MarkKey, err)
	}
	switch {
	case !protocol.Keeps(ctx, protocol.Swap):
		err = r.Store.Put(ctx, MarkKey, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
	case before == nil:
		err = r.create(ctx, MarkKey, data, nil)
	default:
		err = r.swap(ctx, MarkKey, before.data, data, nil)
	}
	var stands *standsError
	switch {
	case errors.As(err, &stands):
		now, perr := r.parseMark(stands.data)
		if stands.stored && perr == nil && now.UUID == m.UUID && now.Owner == m.Owner && now.Revision > m.Revision {
			return now, nil // it was stored, and somebody has struck from it since
		}
		return nil, ErrMarkChanged
	case err != nil:
		return nil, fmt.Errorf("store the mark of a prune: %w", err)
	}
	m.data = data
	return m, nil
}

// ChangeMark replaces the mark, which must be as it was read into m, by its next
// revision, and returns that. Where it is not the error is ErrMarkChanged.
func (r *Repository) ChangeMark(ctx context.Context, m *Mark, change func(*Mark)) (*Mark, error) {
	next := *m
	next.Struck, next.Leases = slices.Clone(m.Struck), slices.Clone(m.Leases)
	next.Suspected = nil
	change(&next)
	next.Revision++
	return r.storeMark(ctx, m, &next)
}

// MarkEnded reports whether the owner of a mark has ended: it said so itself, or that is
// certain on this host, or the mark was seen unchanged for a day by this machine's clock.
// Where it was deleting, a request of its own may still be on its way to the store: then
// the mark has to be seen unchanged for as long as that takes, too. When it was first seen
// so is noted in the mark, which is returned as it is then.
func (r *Repository) MarkEnded(ctx context.Context, m *Mark) (*Mark, bool, error) {
	self, err := r.Self()
	if err != nil {
		return m, false, err
	}
	unchanged := unchangedFor
	if m.Released || r.ended(ctx, self, m.Process, m.Owner) {
		unchanged = 0
		if m.State == MarkDeleting {
			unchanged = objstore.MaxDelay(r.Store)
		}
	}
	if unchanged == 0 {
		return m, true, nil
	}
	boot, since, err := bootClock(ctx)
	if err != nil || boot == "" {
		return m, false, err
	}
	if s := m.Suspected; s != nil && s.BootID == boot && s.Since <= since {
		return m, time.Duration(since-s.Since)*time.Second >= unchanged, nil
	}
	next, err := r.ChangeMark(ctx, m, func(m *Mark) { m.Suspected = &Suspicion{BootID: boot, Since: since} })
	if errors.Is(err, ErrMarkChanged) {
		return m, false, nil
	}
	return next, false, err
}

// TakeOver makes the mark this process's, in a run of its own, without a change to
// what it says.
func (r *Repository) TakeOver(ctx context.Context, m *Mark) (*Mark, error) {
	self, err := r.Self()
	if err != nil {
		return nil, err
	}
	return r.ChangeMark(ctx, m, func(m *Mark) { m.Owner, m.Process, m.Released = NewUUID(), self, false })
}

// ReplaceDamagedMark puts a mark that is done in the place of one that is damaged. The prune
// that it belonged to must have ended, which only a person can say; if it is at work after
// all, it finds that the mark is not its own and stops. What it had listed nothing needed,
// and what of that is still there the next prune finds again.
func (r *Repository) ReplaceDamagedMark(ctx context.Context) error {
	data, err := objstore.ReadAll(ctx, r.Store, MarkKey, maxStored)
	if err != nil {
		return fmt.Errorf("read the mark of a prune: %w", err)
	}
	if _, err := r.parseMark(data); !archive.IsDamage(err) {
		return ErrMarkChanged
	}
	self, err := r.Self()
	if err != nil {
		return err
	}
	list, err := r.putMarkList(ctx, &MarkList{})
	if err != nil {
		return err
	}
	_, err = r.storeMark(ctx, &Mark{data: data}, &Mark{
		Head: Head{Format: MarkFormat, Version: 1}, UUID: NewUUID(), Revision: 1, State: MarkDone,
		Owner: NewUUID(), Process: self, Since: now(), List: list,
	})
	return err
}

// SetDeleting fixes what is deleted: list, which has nothing that was struck.
func (r *Repository) SetDeleting(ctx context.Context, m *Mark, list *MarkList) (*Mark, error) {
	for _, key := range m.Struck {
		if list.Has(key) {
			return nil, fmt.Errorf("%s was struck from the mark and is to be deleted", key)
		}
	}
	ref, err := r.putMarkList(ctx, list)
	if err != nil {
		return nil, err
	}
	return r.ChangeMark(ctx, m, func(m *Mark) { m.State, m.List, m.Struck = MarkDeleting, ref, nil })
}

// Strike takes objects out of a mark that is marked: they are needed. Of keys that are
// not in its list nothing is said.
func (r *Repository) Strike(ctx context.Context, m *Mark, keys []string) (*Mark, error) {
	if m.State != MarkMarked {
		return nil, fmt.Errorf("what is marked can't be struck in state %s", m.State)
	}
	return r.ChangeMark(ctx, m, func(m *Mark) {
		m.Struck = slices.Compact(slices.Sorted(slices.Values(append(m.Struck, keys...))))
		if len(m.Struck) > maxStruck {
			m.State, m.Struck = MarkDone, nil // all of it is struck
		}
	})
}

// EndMark says that nothing is marked any more: all is deleted, or nothing is to be.
func (r *Repository) EndMark(ctx context.Context, m *Mark) (*Mark, error) {
	return r.ChangeMark(ctx, m, func(m *Mark) { m.State, m.Struck, m.Leases = MarkDone, nil, nil })
}

// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// line makes checkpoints of one disk that record the bitmaps of those before them, as a
// domain's backups do, and commits them.
func line(t *testing.T, r *Repository, count int) []*Manifest {
	t.Helper()
	var all []*Manifest
	for i := range count {
		m := r.sample("web", fmt.Sprintf("c%d", i+1))
		m.Sequence = int64(i + 1)
		m.Disks = m.Disks[:1]
		m.Disks[0].Witnesses = nil
		for _, before := range all[max(0, i-2):] {
			m.Disks[0].Witnesses = append(m.Disks[0].Witnesses, BitmapRecord{
				Name: before.Disks[0].Bitmap, LayerPath: "/images/web \xff.qcow2", Granularity: 65536, Size: 1 << 30, Enabled: true,
				Object: archive.Ref{Name: digest(before.Checkpoint + " at " + m.Checkpoint), Length: 77},
			})
		}
		commit(t, r, m)
		all = append(all, m)
	}
	return all
}

// forget forgets those of all that are at these places, and returns the others.
func forget(t *testing.T, r *Repository, all []*Manifest, places ...int) []*Manifest {
	t.Helper()
	var gone, stay []*Manifest
	for i, m := range all {
		if slices.Contains(places, i) {
			gone = append(gone, m)
		} else {
			stay = append(stay, m)
		}
	}
	told := 0
	if err := Forget(t.Context(), r, all, gone, func(*Manifest) { told++ }); err != nil {
		t.Fatal(err)
	}
	if told != len(gone) {
		t.Errorf("%d of %d were told of", told, len(gone))
	}
	return stay
}

// left is what the forgotten list of a domain has: NAME, and what it saw of others.
func left(t *testing.T, r *Repository) map[string][]string {
	t.Helper()
	f, err := r.Forgotten(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]string)
	for _, m := range f.Manifests() {
		out[m.Checkpoint] = []string{}
		for _, w := range m.Disks[0].Witnesses {
			name, _ := ParseBitmapName(w.Name)
			out[m.Checkpoint] = append(out[m.Checkpoint], name)
		}
	}
	return out
}

func wantLeft(t *testing.T, r *Repository, want map[string][]string) {
	t.Helper()
	if got := left(t, r); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("what is left: %v, want %v", got, want)
	}
}

// TestForgottenStaysKnown: the names of bitmaps stay known, and what was seen of those of
// checkpoints that stay, for as long as they do.
func TestForgottenStaysKnown(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 5)
	stay := forget(t, r, all, 2, 3)
	wantLeft(t, r, map[string][]string{"c3": {"c1", "c2"}, "c4": {"c2"}}) // and c3's is gone with it
	names, err := r.Checkpoints(t.Context(), "web")
	if want := []string{"c1", "c2", "c5"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("there are %v, %v", names, err)
	}
	stay = forget(t, r, stay, 1)
	wantLeft(t, r, map[string][]string{"c2": {"c1"}, "c3": {"c1"}, "c4": {}})
	forget(t, r, stay, 0, 1)
	wantLeft(t, r, map[string][]string{"c1": {}, "c2": {}, "c3": {}, "c4": {}, "c5": {}})

	f, err := r.Forgotten(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range f.Manifests() {
		if m.UUID != all[i].UUID || m.Sequence != all[i].Sequence || m.Disks[0].Bitmap != all[i].Disks[0].Bitmap ||
			m.Disks[0].Size != all[i].Disks[0].Size || len(m.Disks[0].Backing) != len(all[i].Disks[0].Backing) {
			t.Errorf("of %s there is %+v", all[i].Checkpoint, m)
		}
	}
	lists := 0
	for f, err := range r.AllForgotten(t.Context()) {
		if err != nil || f.Domain != "web" {
			t.Errorf("%+v, %v", f, err)
		}
		lists++
	}
	if lists != 1 {
		t.Errorf("%d lists", lists)
	}
}

// TestForgottenReferences: what was seen of bitmaps is what a list needs.
func TestForgottenReferences(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 3)
	forget(t, r, all, 1, 2)
	f, err := r.Forgotten(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for ref := range f.References() {
		got = append(got, ref.Key)
	}
	want := []string{archive.BitmapKey(digest("c1 at c2")), archive.BitmapKey(digest("c1 at c3"))}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestForgottenReduced: a bitmap that a later checkpoint found sound needs no older
// record; and very many names are not kept, but what is seen of bitmaps, and how small a
// disk was, is.
func TestForgottenReduced(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 4)
	all[3].Disks[0].Witnesses[0].Sound = true // c2's, at c4
	var f Forgotten
	f.add([]*Manifest{all[2]}, []*Manifest{all[0], all[1], all[3]})
	if names := f.Checkpoints[0].Disks[0].Witnesses; len(names) != 1 || names[0].Name != all[0].Disks[0].Bitmap {
		t.Errorf("kept %+v", names)
	}

	f = Forgotten{}
	var many []*Manifest
	for i := range keptForgotten + 10 {
		m := *all[0]
		m.UUID, m.Sequence, m.Disks = NewUUID(), int64(i+2), []Disk{{Name: "vda", Bitmap: "b", Size: 1 << 40}}
		many = append(many, &m)
	}
	many[0].Disks[0].Size--
	many[1].Disks[0].Witnesses = []BitmapRecord{{Name: all[0].Disks[0].Bitmap}}
	none := &Manifest{UUID: NewUUID(), Sequence: 50_000, Disks: []Disk{{Name: "vda", Size: 1 << 40}}}
	f.add(append(many, none), all[:1])
	switch {
	case len(f.Checkpoints) != keptForgotten:
		t.Errorf("%d are kept", len(f.Checkpoints))
	case f.Checkpoints[0].UUID != many[0].UUID || f.Checkpoints[1].UUID != many[1].UUID:
		t.Error("what was of use is gone")
	case f.Checkpoints[2].UUID != many[12].UUID:
		t.Errorf("the third is of sequence %d", f.Checkpoints[2].Sequence)
	}
}

// TestForgetCutOff: wherever forgetting is cut off, every checkpoint that is not told of
// as forgotten stands, what is known of one that is gone was noted before, and the same
// again completes it.
func TestForgetCutOff(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		r := newRepository(t)
		all := line(t, r, 4)
		cut := &cutOff{Store: r.Store, left: n}
		told := make(map[string]bool)
		err := Forget(t.Context(), r.with(cut), all, all[1:3], func(m *Manifest) { told[m.Checkpoint] = true })
		if err == nil {
			if n < 3 {
				t.Fatalf("forgetting took %d operations", n)
			}
			t.Logf("cut off after each of %d operations", n)
			return
		}
		if !errors.Is(err, errCutOff) {
			t.Fatalf("cut off after %d: %v", n, err)
		}
		names, lerr := r.Checkpoints(t.Context(), "web")
		if lerr != nil {
			t.Fatal(lerr)
		}
		known := left(t, r)
		for _, m := range all[1:3] {
			stands := slices.Contains(names, m.Checkpoint)
			if !stands && known[m.Checkpoint] == nil {
				t.Errorf("cut off after %d: %s is gone, and nothing is known of it", n, m.Checkpoint)
			}
			if stands && told[m.Checkpoint] {
				t.Errorf("cut off after %d: %s stands, and was told to be forgotten", n, m.Checkpoint)
			}
		}
		if !slices.Contains(names, "c1") || !slices.Contains(names, "c4") {
			t.Errorf("cut off after %d: there are %v", n, names)
		}
		dead := protocol.WithTest(t.Context(), &protocol.Test{Ended: func(string) bool { return true }})
		if err := Forget(dead, r, all, all[1:3], func(*Manifest) {}); err != nil {
			t.Errorf("again: %v", err)
		}
		wantLeft(t, r, map[string][]string{"c2": {"c1"}, "c3": {"c1"}})
	}
}

var errCutOff = errors.New("cut off")

// cutOff is a store that fails for good after some operations.
type cutOff struct {
	objstore.Store
	mu   sync.Mutex
	left int
}

func (c *cutOff) step() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		return errCutOff
	}
	c.left--
	return nil
}

func (c *cutOff) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.Store.Put(ctx, key, body, o)
}

func (c *cutOff) Delete(ctx context.Context, key string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.Store.Delete(ctx, key)
}

// TestForgottenOfTwo: two who forget at once lose nothing that the other noted.
func TestForgottenOfTwo(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 4)
	meanwhile := &meanwhile{Store: r.Store, do: func() { forget(t, r, all, 0) }}
	if err := Forget(t.Context(), r.with(meanwhile), all, all[1:2], func(*Manifest) {}); err != nil {
		t.Fatal(err)
	}
	if meanwhile.do != nil {
		t.Error("nothing came between")
	}
	wantLeft(t, r, map[string][]string{"c1": {}, "c2": {"c1"}})
}

// meanwhile does something before the first object is stored.
type meanwhile struct {
	objstore.Store
	do func()
}

func (m *meanwhile) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return m.Store.Put(ctx, key, body, o)
}

// TestForgetRevised: one that was repacked meanwhile is forgotten, and one that was tagged
// is not.
func TestForgetRevised(t *testing.T) {
	t.Parallel()
	for _, tag := range []bool{false, true} {
		r := newRepository(t)
		all := line(t, r, 2)
		revise := &meanwhile{Store: r.Store, do: func() {
			m := *all[0]
			m.Description = "repacked"
			if tag {
				m.Tags = []string{"keep"}
			}
			if err := r.Revise(t.Context(), &m); err != nil {
				t.Error(err)
			}
		}}
		err := Forget(t.Context(), r.with(revise), all, all[:1], func(*Manifest) {})
		var revised *RevisedError
		if revise.do != nil || errors.As(err, &revised) != tag || !tag && err != nil {
			t.Errorf("tagged: %v: %v", tag, err)
		}
		if _, err := r.Manifest(t.Context(), "web", "c1"); errors.Is(err, ErrNoCheckpoint) == tag {
			t.Errorf("tagged: %v: c1: %v", tag, err)
		}
	}
}

// TestForgottenDamaged: what can't be read is not overwritten, and nothing is forgotten.
func TestForgottenDamaged(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 3)
	forget(t, r, all, 0)
	data, err := objstore.ReadAll(t.Context(), r.Store, forgottenKey("web"), maxSealed)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"a bit":          bytes.Replace(data, []byte("c1"), []byte("c7"), 1),
		"another domain": resealed(t, data, `"domain": "web"`, `"domain": "wex"`),
		"no bitmap":      resealed(t, data, `"virtual_size": 1`, `"virtual_size": -1`),
	} {
		if bytes.Equal(bad, data) {
			t.Fatalf("%s: nothing was changed in\n%s", what, data)
		}
		put(t, r.Store, forgottenKey("web"), bad)
		if _, err := r.Forgotten(t.Context(), "web"); !archive.IsDamage(err) {
			t.Errorf("%s: %v", what, err)
		}
		if err := Forget(t.Context(), r, all[1:], all[1:2], func(*Manifest) {}); !archive.IsDamage(err) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := r.Manifest(t.Context(), "web", "c2"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// resealed is a sealed object with one text in it replaced.
func resealed(t *testing.T, data []byte, old, text string) []byte {
	t.Helper()
	plain := data[:len(data)-seal.LineLength]
	changed := bytes.Replace(plain, []byte(old), []byte(text), 1)
	if bytes.Equal(changed, plain) {
		t.Fatalf("there is no %q in\n%s", old, data)
	}
	return append(slices.Clone(changed), seal.Line(changed)...)
}

// TestForgottenTold: what another repository told of a checkpoint, reduced to what was of use
// there, does not stand for what this one knows of it.
func TestForgottenTold(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 3)
	told := forgottenOf(all[2])
	told.Disks = slices.Clone(told.Disks)
	told.Disks[0].Witnesses = told.Disks[0].Witnesses[1:] // c1 had been forgotten there
	lost := *all[2]
	lost.Disks = slices.Clone(lost.Disks)
	lost.Disks[0].RecordsLost = true
	f := Forgotten{Checkpoints: []ForgottenCheckpoint{told}}
	for range 2 {
		f.add([]*Manifest{&lost}, all[:2])
		d := f.Checkpoints[0].Disks[0]
		if len(f.Checkpoints) != 1 || len(d.Witnesses) != 2 || !d.RecordsLost {
			t.Errorf("%+v", f.Checkpoints)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/objstore"
)

// withFile gives the newest checkpoint a file beside its disks.
func withFile(t *testing.T, h *chaintest.History) {
	t.Helper()
	w, err := archive.NewWriter(t.Context(), h.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	ref, err := w.PutFile(t.Context(), strings.NewReader("variables"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := h.Checkpoints[len(h.Checkpoints)-1]
	next := *last
	next.Files = []chain.File{{Role: chain.RoleNVRAM, Path: "/nvram", FileRef: ref}}
	if err := h.Repo.Revise(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	h.Checkpoints[len(h.Checkpoints)-1] = &next
}

// TestBetweenSteps: whatever a prune does after the chunks were proven and before the next
// step, the record says what was proven then, and nothing is called damage.
func TestBetweenSteps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		meanwhile func(h *chaintest.History, last int)
		want      string
		state     record.State
	}{
		{
			"repacked", func(h *chaintest.History, last int) { h.Repack(last) },
			"passed chunks=passed restore=passed files=passed", record.Repacked,
		},
		{
			"forgotten", func(h *chaintest.History, last int) { h.Forget(last); h.Prune() },
			"incomplete chunks=passed restore=skipped files=skipped", record.Forgotten,
		},
	} {
		for _, scratch := range []bool{false, true} {
			h := grown(t, 3)
			withFile(t, h)
			last := len(h.Checkpoints) - 1
			d := begin(t, h.Repo)
			data := d.Data(scratch)
			chunks := stub{record.StepChunks, func(ctx context.Context, s *Subject) (Result, error) {
				res, err := data[0].Run(ctx, s)
				if err == nil {
					c.meanwhile(h, last)
				}
				return res, err
			}}
			// A step that reads the disk from the repository.
			reads := stub{record.StepFiles, func(ctx context.Context, s *Subject) (Result, error) {
				if err := readServed(ctx, s); err != nil {
					return s.Damage(ctx, errors.Join(s.Fault(), err))
				}
				return Pass(""), nil
			}}
			r, err := d.Run(t.Context(), target(h, chunks, data[1], reads))
			if err != nil || outcome(r) != c.want || r.Revision != h.Checkpoints[last].Revision {
				t.Errorf("%s, scratch %v: %v, %s, revision %d: %+v", c.name, scratch, err, outcome(r), r.Revision, r.Steps)
				continue
			}
			if state, why, err := record.Compare(t.Context(), h.Repo, r); err != nil || state != c.state {
				t.Errorf("%s, scratch %v: %s (%s), %v", c.name, scratch, state, why, err)
			}
		}
	}
}

// readServed reads all of the disk as a client of the server.
func readServed(ctx context.Context, s *Subject) error {
	served, err := s.Serve(ctx)
	if err != nil {
		return err
	}
	nc, err := new(net.Dialer).DialContext(ctx, "unix", served.Socket)
	if err != nil {
		return err
	}
	c, err := nbd.NewClient(ctx, nc, nbd.ClientOptions{Export: served.Disks[0].Disk})
	if err != nil {
		return err
	}
	return errors.Join(c.ReadAt(ctx, make([]byte, c.Size()), 0), c.Close())
}

// TestFaultOfEachStep: a read that failed in one step is no excuse of the next one, whose
// program then says no by itself.
func TestFaultOfEachStep(t *testing.T) {
	t.Parallel()
	h := grown(t, 1)
	store := &failing{Store: h.Store}
	repo := &chain.Repository{Store: store, Config: h.Repo.Config, Memory: h.Repo.Memory}
	var faults []error
	first := stub{record.StepFiles, func(ctx context.Context, s *Subject) (Result, error) {
		faults = append(faults, s.Fault())
		store.on.Store(true)
		err := readServed(ctx, s)
		store.on.Store(false)
		if err == nil {
			t.Error("nothing failed")
		}
		faults = append(faults, s.Fault())
		return Result{}, s.Fault()
	}}
	second := stub{record.StepBoot, func(ctx context.Context, s *Subject) (Result, error) {
		faults = append(faults, s.Fault())
		if err := readServed(ctx, s); err != nil {
			t.Error(err)
		}
		return Pass(""), nil
	}}
	says := Command{Run: []string{"/bin/sh", "-c", "exit 7"}}.Step()
	r, err := begin(t, repo).Run(t.Context(), target(h, first, second, says))
	if err != nil || outcome(r) != "failed files=skipped boot=passed command=failed" {
		t.Fatalf("%v, %s: %+v", err, outcome(r), r.Steps)
	}
	if len(faults) != 3 || faults[0] != nil || !errors.Is(faults[1], errAway) || faults[2] != nil {
		t.Errorf("%v", faults)
	}
}

var errAway = objstore.MarkPermanent(errors.New("away"))

// failing is a store whose packs cannot be read while it is on.
type failing struct {
	objstore.Store
	on atomic.Bool
}

func (f *failing) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if f.on.Load() && strings.HasPrefix(key, archive.PackPrefix) {
		return nil, errAway
	}
	return f.Store.Get(ctx, key, offset, length)
}

// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// A large image takes as long to be looked at as a far repository does to tell what it has. So a
// run looks at its images while it asks for that.
//
// Nothing is different for it but the time. The image is open under the locks that it is planned
// under, from before the listing to the end of the plan, and under the flock that keeps other runs
// from it: so it is then what it would be if it were opened after. Where anything is in the way of
// that, the image is opened in its turn, and who finds out tells.

// earlyPatience is how long an image is kept from being started because of a repository that does
// not answer.
const earlyPatience = 5 * time.Second

// early are images that are looked at before their turn.
type early struct {
	done  chan struct{} // closed when they were looked at
	looks []earlyLook   // as the session's disks; of the zero value nothing is held
	late  *time.Timer
	since time.Time // when the first image was locked

	mu sync.Mutex
}

type earlyLook struct {
	image *qcow2.Image
	guard *qemu.ImageFlock
}

// lookEarly begins to look at the images.
func (s *session) lookEarly(ctx context.Context) {
	if s.req.NoLock || s.req.SkipUnchanged {
		return
	}
	e := &early{done: make(chan struct{}), looks: make([]earlyLook, len(s.disks))}
	s.early = e
	go func() {
		defer close(e.done)
		e.since = time.Now()
		for i, d := range s.disks {
			if d.req.Format == qcow2.Qcow2 && d.req.KeyFile == "" && ctx.Err() == nil {
				e.looks[i] = s.lookAt(ctx, d)
			}
		}
	}()
	e.mu.Lock() // for drop, which stops it
	defer e.mu.Unlock()
	e.late = time.AfterFunc(earlyPatience, e.drop)
}

// lookAt opens an image that nobody else is at work on, and reads its tables.
func (s *session) lookAt(ctx context.Context, d *disk) earlyLook {
	guard, err := qemu.FlockImage(ctx, d.req.Path, 0)
	if err != nil {
		return earlyLook{}
	}
	o := s.req.ImageOptions
	o.Limiter = s.limiter
	options := o.openOptions(ctx, d.req)
	image, err := lockedImage(ctx, d.req.Path, d.req.Format, options, 0)
	if err != nil {
		_ = guard.Close() // opened for reading only
		return earlyLook{}
	}
	look := earlyLook{image, guard}
	if same, err := guard.Holds(image.Layers[0]); err != nil || !same {
		look.drop()
		return earlyLook{}
	}
	if s.wantsBitmapIn(d, image) {
		image.Layers[0].WantRefcounts()
	}
	image.Survey()
	return look
}

// drop gives up what is held.
func (l *earlyLook) drop() {
	if l.image != nil { // descriptors that only read: closing them can lose nothing
		_, _ = l.image.Close(), l.guard.Close()
	}
	*l = earlyLook{}
}

// drop gives up all images.
func (e *early) drop() {
	if e == nil {
		return
	}
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	e.late.Stop()
	for i := range e.looks {
		e.looks[i].drop()
	}
}

// takeEarly gives the disks the images that have been looked at, if their turn has come.
func (s *session) takeEarly() {
	e := s.early
	if e == nil {
		return
	}
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	e.late.Stop()
	for i, d := range s.disks {
		if l := &e.looks[i]; l.image != nil && d.image == nil && d.guard == nil {
			d.image, d.guard, d.fresh = l.image, l.guard, true
			s.lockedSince = e.since
			*l = earlyLook{}
		}
	}
	s.early = nil
}

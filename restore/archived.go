// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"sync"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/view"
)

// archivedDisk is a disk for a writer that reads it as a disk, in whatever order.
type archivedDisk struct {
	repo  *chain.Repository
	entry *chain.Disk
	lost  *chain.LossSet // nil: nothing may be

	reader *view.Reader // nil: not open
	disk   *view.Disk
}

// open opens the disk.
func (a *archivedDisk) open(ctx context.Context) (err error) {
	var o view.Options
	if a.lost != nil {
		o.Lose = a.lost.Add
	}
	a.reader = view.NewReader(ctx, a.repo, o)
	if a.disk, err = a.reader.Open(ctx, a.entry); err != nil {
		return damage(a.entry.Name, err, 0, a.entry.Size)
	}
	return nil
}

// prove is [writer]'s.
func (a *archivedDisk) prove(ctx context.Context) (counts outfile.Amounts, err error) {
	if err := a.open(ctx); err != nil {
		return counts, err
	}
	for zeros, err := range a.disk.Zeros(ctx, 0, a.disk.Size()) {
		if err != nil {
			return counts, damage(a.entry.Name, err, 0, a.disk.Size())
		}
		counts.Zero += zeros.End - zeros.Start
	}
	counts.Data = a.disk.Size() - counts.Zero
	return counts, nil
}

// close is [writer]'s.
func (a *archivedDisk) close() {
	if a.reader != nil {
		a.reader.Close()
	}
}

// limited is an archived disk, as an nbd.Device too, that is read no faster than allowed.
type limited struct {
	*view.Disk
	limit *rate.Limiter
	tell  func(n int64) // is told of every read, from several goroutines; may be nil
}

// ReadAt implements nbd.Device.
func (l *limited) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := wait(ctx, l.limit, len(p)); err != nil {
		return err
	}
	if err := l.Disk.ReadAt(ctx, p, off); err != nil {
		return damage(l.Name, err, off, off+int64(len(p)))
	}
	if l.tell != nil {
		l.tell(int64(len(p)))
	}
	return nil
}

// meter counts progress up to what is expected: a program that reads for itself may
// read some bytes twice, and others never.
type meter struct {
	p    *progress
	mu   sync.Mutex
	left int64 // bytes
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n = min(n, m.left); n > 0 {
		m.left -= n
		m.p.add(n)
	}
}

// done counts what was never read: all is there.
func (m *meter) done() { m.add(m.left) }

// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// BusyError says that another run of the job is at work.
type BusyError struct{ Job string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("job %s: another run is at work (--wait waits for it)", e.Job)
}

// lock takes the job's lock; with a [*BusyError], another run is at work.
func (r *runner) lock(ctx context.Context, job string, wait time.Duration) (unlock func(), err error) {
	f, err := r.openLock(job)
	if err != nil {
		return nil, err
	}
	if err := sys.Lock(ctx, f, max(wait, glance)); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, sys.ErrLocked) {
			return nil, &BusyError{job}
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil // which gives the lock up
}

func (r *runner) openLock(job string) (*os.File, error) {
	path := lockPath(r.Config.State, job)
	err := os.MkdirAll(filepath.Dir(path), 0o750)
	if err != nil {
		return nil, fmt.Errorf("the folder for state (state: in the configuration): %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err == nil {
		return f, nil
	}
	// Where nothing can be written any more, what stands there still does.
	if old, oerr := os.Open(path); oerr == nil {
		return old, nil
	}
	return nil, err
}

// glance is how long who only looks whether a run is at work ([atWork]) may have its lock.
const glance = 250 * time.Millisecond

func lockPath(state, job string) string { return filepath.Join(state, "locks", job) }

// atWork reports whether a run of the job is.
func atWork(state, job string) (bool, error) {
	f, err := os.Open(lockPath(state, job))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find out whether job %s is at work: %w", job, err)
	}
	defer func() { _ = f.Close() }() // which gives the lock up
	if err = sys.TryLock(f); errors.Is(err, sys.ErrLocked) {
		return true, nil
	}
	return false, err
}

// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// stopped is a VM that a run shuts down, or has: it is started again whatever happens.
// The record is durable before the VM is told anything.
type stopped struct {
	Format string    `json:"format"`
	Domain string    `json:"domain"`
	Job    string    `json:"job"`
	Run    string    `json:"run"`
	Time   time.Time `json:"time"` // when it was told
	// Off: it has been seen shut off since. Then a VM that runs was started again; else
	// it may still be about to shut down.
	Off      bool            `json:"off,omitempty"`
	Shutdown config.Shutdown `json:"shutdown"` // how it was told, and is started
}

const (
	stoppedFormat = "imgbackup-stopped"
	maxStopped    = 1 << 20 // bytes of a record that are read
)

// slow is how long after it was told a VM that still runs is taken for one that will yet
// shut down by that: if it is found shut off then, it is started.
const slow = 24 * time.Hour

func (r *runner) stoppedPath(domain string) string {
	return filepath.Join(r.Config.State, "stopped", domain+".json")
}

func (r *runner) remember(s *stopped) error {
	path := r.stoppedPath(s.Domain)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	folders := &sys.FolderSyncer{}
	if err := folders.SyncPath(r.Config.State); err != nil {
		return err
	}
	// It may be new, and we may not be allowed to open the folder that it is in.
	if err := folders.SyncPath(filepath.Dir(r.Config.State)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return sys.WriteWhole(path, ".stopped-", 0o640, func(w io.Writer) error { return json.NewEncoder(w).Encode(s) })
}

// forgotten removes the record of a VM that runs again.
func (r *runner) forgotten(domain string) error {
	path := r.stoppedPath(domain)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return (&sys.FolderSyncer{}).SyncPath(filepath.Dir(path))
}

// leftStopped are the VMs that runs have shut down; the error is about records that can't
// be read.
func (r *runner) leftStopped() (all []*stopped, err error) {
	dir := filepath.Join(r.Config.State, "stopped")
	names, err := recordNames(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		s, rerr := readStopped(filepath.Join(dir, name))
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		all = append(all, s)
	}
	return all, err
}

func readStopped(path string) (*stopped, error) {
	var s stopped
	var unread *recordError
	if err := readRecord(path, maxStopped, &s); errors.As(err, &unread) {
		return nil, fmt.Errorf("%s: it says that a VM was shut down, and can't be read: start the VM if it is to run, and remove the file: %w", path, unread.err)
	} else if err != nil {
		return nil, err
	}
	if s.Format != stoppedFormat || s.Domain+".json" != filepath.Base(path) || s.Job == "" || strings.ContainsRune(s.Job, '/') {
		return nil, fmt.Errorf("%s: it is no record of a VM that was shut down", path)
	}
	return &s, nil
}

// startLeft starts VMs that runs have shut down which are no more; own is the job whose
// lock is held.
func (r *runner) startLeft(ctx context.Context, own string) {
	left, err := r.leftStopped()
	if err != nil {
		r.add(Done{What: StepStart, Begun: r.Now().UTC(), Status: 1, Error: err.Error()})
	}
	held := map[string]bool{own: true}
	for _, s := range left {
		mine, known := held[s.Job]
		if !known {
			unlock, err := r.lock(ctx, s.Job, 0)
			if mine = err == nil; mine {
				defer unlock()
			}
			held[s.Job] = mine // if not, that run is at work
		}
		if !mine {
			continue
		}
		// It may have been dealt with between the list and the lock.
		if s, err = readStopped(r.stoppedPath(s.Domain)); err == nil {
			r.startAgain(ctx, s, true)
		}
	}
}

// startAgain starts a VM that was shut down, also where the run is to end; left: by a run
// that is no more.
func (r *runner) startAgain(ctx context.Context, s *stopped, left bool) {
	ctx = context.WithoutCancel(ctx)
	begun := time.Now()
	d := Done{What: StepStart, Domain: s.Domain, Begun: r.Now().UTC(), Seconds: -1}
	p := &power{r, s.Shutdown, s.Domain}
	state, err := p.state(ctx)
	if err == nil && state == isOn && !s.Off && r.mayStillStop(s, left) {
		return
	}
	if state == isOff && left {
		r.Note(fmt.Sprintf("%s was shut down by a run of %s that was cut off: it is started", s.Domain, s.Job))
	}
	r.Tell(d)
	if err != nil || state == isOff {
		err = p.start(ctx)
	}
	if errors.Is(err, errGone) {
		r.Note(fmt.Sprintf("%s was shut down by job %s, and is no more: it can't be started", s.Domain, s.Job))
		err = nil
	}
	if err == nil {
		err = r.forgotten(s.Domain)
	}
	d.Seconds = time.Since(begun).Seconds()
	if err != nil {
		d.Status, d.Error = 1, err.Error()
	}
	r.add(d)
}

// mayStillStop reports whether a VM that runs, and was told to shut down, is to be looked
// at again by the next run.
func (r *runner) mayStillStop(s *stopped, left bool) bool {
	if !left {
		r.Note(fmt.Sprintf("%s still runs: the next runs start it if it is shut down by then", s.Domain))
		return true
	}
	age := r.Now().Sub(s.Time)
	return age < slow && age > -slow
}

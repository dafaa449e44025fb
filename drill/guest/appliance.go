// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/guestfs"
)

// Look is how a guest's disks are looked into.
type Look struct {
	Expect  []Expectation
	Keys    []guestfs.Key // of encrypted volumes, in an order in which they can be opened
	Emulate bool          // go without KVM
	Cache   string        // a folder of this host in which the appliance remembers how it starts; empty: nowhere
	Program string        // guestfish, by name or path; empty: guestfish

	// What the appliance of the step filesystems has found of files already.
	found    *drill.Result
	foundFor string // UUID of the checkpoint, and of its revision
}

// lookTimeout is how long the appliance may take at most.
const lookTimeout = 30 * time.Minute

const todoInstall = "install " + guestfs.Packages + "; or leave the step out by --skip"

const todoKey = "name the volume and its key rightly by --luks-key; if the guest's own disk opens with that key, the backup does not have its header: drill an older checkpoint"

// subject tells checkpoints apart, as they are by now.
func subject(s *drill.Subject) string { return fmt.Sprint(s.Manifest.UUID, s.Manifest.Revision) }

// withAppliance starts an appliance with the subject's disks, and ends it.
func (l *Look) withAppliance(ctx context.Context, s *drill.Subject, do func(context.Context, *guestfs.Session) (drill.Result, error)) (res drill.Result, err error) {
	served, err := s.Serve(ctx)
	if err != nil {
		return res, err
	}
	timeout := s.Limits.Timeout
	if timeout == 0 {
		timeout = lookTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var disks []guestfs.Disk
	for _, d := range served.Disks {
		disks = append(disks, guestfs.Disk{Name: d.Disk, Socket: served.Socket})
	}
	before := s.Read()
	g, err := guestfs.Start(limited, guestfs.Options{Disks: disks, TempDir: s.Scratch, Emulate: l.Emulate, Note: s.Note,
		Program: l.Program, Keys: l.Keys, Cache: l.Cache})
	if errors.Is(err, guestfs.ErrNotInstalled) {
		return drill.Skip(err.Error(), todoInstall), nil
	}
	if err == nil {
		res, err = do(limited, g)
		err = errors.Join(err, g.Close())
		res.Bytes = s.Read() - before
		res.Programs = map[string]string{"libguestfs": g.Version}
		if g.Emulated {
			res.Programs["libguestfs"] += " (without KVM)"
		}
	}
	if ctx.Err() != nil {
		return res, context.Cause(ctx)
	}
	if s.Fault() != nil { // whatever the appliance made of it
		return s.Damage(ctx, s.Fault())
	}
	if limited.Err() != nil {
		return drill.Skip(fmt.Sprintf("the appliance of libguestfs was not ready within %s", timeout), "give it more time by --step-timeout"), nil
	}
	if errors.As(err, new(*guestfs.LockedError)) {
		return drill.Skip(err.Error(), todoKey), nil
	}
	if err != nil {
		return drill.Skip(err.Error(), "see to what the reason says; libguestfs-test-tool tries an appliance without any disk of a guest"), nil
	}
	return res, nil
}

// failed reports whether a result is a failure.
func failed(r *drill.Result) bool { return r.Status == record.Failed }

// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// kvmPatience is how long an appliance may take to start with KVM, which needs seconds:
// where KVM is there and can't run a guest, it may hang. An appliance that runs emulated
// needs 20 s on two slow processors; whoever is slower with KVM than three times that
// loses nothing without. The appliance is built before, and its keys are tried afterwards.
const kvmPatience = time.Minute

const (
	noKVMFile   = "nokvm"        // in the folder that is kept from run to run
	noKVMPrefix = ".nokvm-"      // begins its name while it is written
	noKVMFor    = 24 * time.Hour // it is believed: what was wrong may have been mended
	maxBootID   = 64             // bytes
)

// kvmWork is what is remembered of how KVM works here, so that only the first session
// waits for what hangs.
type kvmWork struct {
	folder string // empty: nothing is
	bootID string // path of the file with that of the running system; for tests
}

func (k kvmWork) file() string { return filepath.Join(k.folder, noKVMFile) }

// failed reports whether no appliance has started with KVM in this boot of the host, a
// short time ago, and one has without.
func (k kvmWork) failed() bool {
	if k.folder == "" {
		return false
	}
	st, err := os.Stat(k.file())
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	if age := time.Since(st.ModTime()); age < 0 || age > noKVMFor {
		return false
	}
	is, was := head(k.bootID), head(k.file())
	return len(is) > 0 && bytes.Equal(is, was)
}

// remember notes that so it was. Whoever can't remember it waits once more.
func (k kvmWork) remember() {
	boot := head(k.bootID)
	if k.folder == "" || len(boot) == 0 || os.MkdirAll(k.folder, 0o700) != nil {
		return
	}
	_ = sys.WriteWhole(k.file(), noKVMPrefix, 0o600, func(w io.Writer) error {
		_, err := w.Write(boot)
		return err
	})
}

// head is the beginning of a small plain file; empty: it can't be read.
func head(path string) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxBootID))
	if err != nil {
		return nil
	}
	return b
}

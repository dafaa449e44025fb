// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/imgbackup/imgbackup/confine"
)

// startTPM starts swtpm on a folder, which becomes the user's that it runs as: its
// descriptor 4. Descriptor 3 is its socket.
func startTPM(path string, args []string, dir string, socket *os.File, how []confine.Apart) (_ *confine.Process, err error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	if uid := how[0].UID; uid != 0 {
		if err := giveTo(dir, int(uid)); err != nil {
			return nil, err
		}
	}
	// Its state is a few KiB, and it has nothing to work out for long.
	l := confine.Limits{Memory: 1 << 30, File: maxFile, CPU: time.Hour}
	p, used, err := confine.StartApart(func(confine.Apart) *exec.Cmd {
		return confine.Program("/bin/sh", append(append(l.Shell(), path), args...), []*os.File{socket, folder}, new(confine.Said))
	}, how)
	if err == nil && used.UID != how[0].UID {
		p.Kill()
		err = fmt.Errorf("it cannot run as the user %d", how[0].UID)
	}
	return p, err
}

// giveTo makes a folder, and all in it, a user's.
func giveTo(dir string, uid int) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
}

// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// startTPM starts swtpm on a folder, which becomes the user's that it runs as: its
// descriptor 4. Descriptor 3 is its socket.
func startTPM(path string, args []string, dir string, socket *os.File, how []confinement) (_ *process, err error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	if uid := how[0].uid; uid != 0 {
		if err := giveTo(dir, int(uid)); err != nil {
			return nil, err
		}
	}
	p, used, err := start(path, args, []*os.File{socket, folder}, how)
	if err == nil && used.uid != how[0].uid {
		p.kill()
		err = fmt.Errorf("it cannot run as the user %d", how[0].uid)
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

// SPDX-License-Identifier: Apache-2.0

package files

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
)

// guest is one with two plain files of 5 bytes, of which /bad has to be read from the disk.
const guest = `
  list-partitions) echo /dev/sda1 ;;
  vfs-type) echo ext4 ;;
  add-drive) sock=$*; sock=${sock##*unix:}; sock=${sock%%\\x27*} ;;
  realpath) echo "${2//\"/}" ;;
  lstatns) printf 'st_mode: 33188\nst_size: 5\nst_uid: 0\nst_gid: 0\nst_ino: 1\nst_nlink: 1\nst_blocks: 8\nst_mtime_sec: 1\nst_mtime_nsec: 0\nst_ctime_sec: 1\nst_ctime_nsec: 0\n' ;;
  download) case "$2" in *bad*) printf 'ba'
      qemu-io -r -f raw -c "read 1048576 4096" "nbd+unix:///vda?socket=$sock" 2>&1 | grep -q 'read 4096/4096' || echo 'libguestfs: error: download: Input/output error' >&2 ;;
    *) printf 'good\n' ;; esac ;;`

// spoilt is a store whose packs can't be read.
type spoilt struct {
	objstore.Store
	away error // the store's own; nil: they are damaged
}

func (s *spoilt) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Store.Get(ctx, key, offset, length)
	if err != nil || !strings.HasPrefix(key, archive.PackPrefix) {
		return r, err
	}
	if s.away != nil {
		return nil, errors.Join(s.away, r.Close())
	}
	return damaged{r}, nil
}

type damaged struct{ io.ReadCloser }

func (d damaged) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	for i := range p[:n] {
		p[i] ^= 0x55
	}
	return n, err
}

// What is damaged is told with the file that it was needed for; others are taken out all the
// same, and nothing else is left. What a killed run has left goes. Of a store that is away
// nothing more is asked.
func TestGetBesideDamage(t *testing.T) {
	t.Parallel()
	away := objstore.MarkPermanent(errors.New("the store is away"))
	for _, c := range []struct {
		away error
		want []string
	}{{nil, []string{"good"}}, {away, nil}} {
		h := chaintest.NewHistory(t)
		content := make([]byte, 2<<20)
		chaintest.Fill(rand.New(rand.NewPCG(1, 2)), content)
		m := h.Commit(content, true, nil)
		h.Repo.Store = &spoilt{h.Repo.Store, c.away}
		out, temp := t.TempDir(), t.TempDir()
		stale, other := partialName(), partialPrefix+"mine"
		for _, name := range []string{stale, other} {
			if err := os.WriteFile(filepath.Join(out, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(t.Context(), h.Repo, m, Options{Emulate: true, Program: testkit.Guestfish(t, guest), TempDir: temp, Note: func(string) {}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Get(t.Context(), []string{"/bad", "/good"}, out, GetOptions{})
		switch {
		case c.away != nil:
			if !errors.Is(err, c.away) || archive.IsDamage(err) {
				t.Errorf("a store that is away: %v", err)
			}
		case !archive.IsDamage(err) || !strings.Contains(err.Error(), "/bad") || errors.As(err, new(*BesideError)):
			t.Errorf("damage: %v", err)
		}
		names := slices.DeleteFunc(testkit.Names(t, out), func(n string) bool { return n == other })
		if !slices.Equal(names, c.want) || got.Files != int64(len(c.want)) || got.Bytes != int64(5*len(c.want)) {
			t.Errorf("%q are there, and %+v is told", names, got)
		}
		if c.away == nil {
			if _, err := l.Get(t.Context(), []string{"/good"}, out, GetOptions{}); !errors.Is(err, ErrExists) {
				t.Errorf("once more: %v", err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := testkit.Names(t, temp); len(left) > 0 {
			t.Errorf("%q are left", left)
		}
		// Nothing is answered any more by an appliance that has ended.
		if _, err := l.Get(t.Context(), []string{"/other"}, out, GetOptions{}); !errors.Is(err, guestfs.ErrEnded) && c.away == nil {
			t.Errorf("after its end: %v", err)
		}
	}
}

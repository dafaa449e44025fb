// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// growing is a file of 4096 bytes in a folder of its own, and a grower that grants all.
func growing(t *testing.T) (f *os.File, dir string, g grower) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return openDir(t, path), dir, grower{
		limit:    func() (uint64, error) { return 1 << 40, nil },
		free:     func(*os.File) (int64, error) { return 1 << 40, nil },
		allocate: func(*os.File, uint32, int64, int64) error { return nil },
	}
}

// Whatever can refuse is asked, with the number of bytes, and nothing is left.
func TestCheckGrowthAsksAll(t *testing.T) {
	t.Parallel()
	const n = 1 << 20
	for what, c := range map[string]struct {
		spoil func(*grower)
		want  error
	}{
		"all is well":                 {func(*grower) {}, nil},
		"a limit that just suffices":  {func(g *grower) { g.limit = func() (uint64, error) { return 4096 + n, nil } }, nil},
		"a limit one byte too low":    {func(g *grower) { g.limit = func() (uint64, error) { return 4096 + n - 1, nil } }, unix.EFBIG},
		"the limit cannot be told":    {func(g *grower) { g.limit = func() (uint64, error) { return 0, unix.EIO } }, unix.EIO},
		"space that just suffices":    {func(g *grower) { g.free = func(*os.File) (int64, error) { return n, nil } }, nil},
		"one byte too little":         {func(g *grower) { g.free = func(*os.File) (int64, error) { return n - 1, nil } }, unix.ENOSPC},
		"the space cannot be told":    {func(g *grower) { g.free = func(*os.File) (int64, error) { return 0, unix.EIO } }, unix.EIO},
		"a quota":                     {allocating(0, unix.EDQUOT), unix.EDQUOT},
		"space that statfs invents":   {allocating(0, unix.ENOSPC), unix.ENOSPC},
		"files that cannot be larger": {allocating(4096, unix.EFBIG), unix.EFBIG},
		"no fallocate":                {allocating(0, unix.EOPNOTSUPP), nil},
		"no holes":                    {allocating(4096, unix.EOPNOTSUPP), nil},
	} {
		f, dir, g := growing(t)
		c.spoil(&g)
		if err := g.checkGrowth(f, n); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", what, err)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"image"}) {
			t.Errorf("%s: left %q", what, got)
		}
	}
}

// allocating lets the allocation from off on give that answer.
func allocating(off int64, answer error) func(*grower) {
	return func(g *grower) {
		g.allocate = func(_ *os.File, _ uint32, at, _ int64) error {
			if at == off {
				return answer
			}
			return nil
		}
	}
}

// Where nothing can be made beside the file, and where no fallocate is, the rest counts.
func TestCheckGrowthBeside(t *testing.T) {
	t.Parallel()
	f, dir, g := growing(t)
	left := filepath.Join(dir, roomName())
	if err := os.WriteFile(left, []byte("of a run that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	allocated := int64(0)
	g.allocate = func(beside *os.File, mode uint32, off, n int64) error {
		if mode == 0 {
			allocated = n
		}
		if filepath.Dir(beside.Name()) != dir || !strings.HasPrefix(filepath.Base(beside.Name()), roomPrefix) {
			t.Errorf("allocated in %s", beside.Name())
		}
		return fallocate(beside, mode, off, n)
	}
	if err := g.checkGrowth(f, 3<<20); err != nil || allocated != 3<<20 {
		t.Errorf("%d bytes allocated, %v", allocated, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"image"}) {
		t.Errorf("left %q", got)
	}
	if err := CheckGrowth(f, 1<<20); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := g.checkGrowth(f, 1); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// What is filled in is really written.
func TestFill(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := fill(f, 1<<20+5); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || len(b) != 1<<20+5 || slices.Index(b, 0) < 0 || slices.Max(b[:4096]) == 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := fill(openDir(t, f.Name()), 1); err == nil {
		t.Error("a file that was opened to read")
	}
}

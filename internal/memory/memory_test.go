// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// tree makes files below a new folder, which it returns.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	mountV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1 = "33 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"34 30 0:30 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory\n"
	plenty = "MemTotal:       24684732 kB\nMemFree:        13633364 kB\n"
)

func TestFind(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		want  int64  // MiB; 0: not limited
		why   string // a part of it
	}{
		"nothing is known": {},
		"nothing limits": {files: map[string]string{
			"proc/meminfo": plenty, "proc/self/cgroup": "0::/user.slice\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/user.slice/memory.max": "max\n", "sys/fs/cgroup/user.slice/memory.high": "max\n",
		}},
		"a small machine": {files: map[string]string{"proc/meminfo": "MemTotal:         204800 kB\n"}, want: 150, why: "machine"},
		"version 2, its own group": {files: map[string]string{
			"proc/meminfo": plenty, "proc/self/cgroup": "0::/a.slice/b.scope\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a.slice/b.scope/memory.max": "134217728\n", "sys/fs/cgroup/a.slice/memory.max": "157286400\n",
		}, want: 128, why: "/a.slice/b.scope/memory.max"},
		"version 2, one above": {files: map[string]string{
			"proc/self/cgroup": "0::/a.slice/b.scope\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a.slice/b.scope/memory.max": "max\n", "sys/fs/cgroup/a.slice/memory.max": "104857600\n",
		}, want: 100, why: "/a.slice/memory.max"},
		"version 2, where it begins to be slowed down": {files: map[string]string{
			"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a/memory.max": "209715200\n", "sys/fs/cgroup/a/memory.high": "157286400\n",
		}, want: 150, why: "memory.high"},
		"version 2, in a container": {files: map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "134217728\n",
		}, want: 128},
		"version 2, beside version 1": {files: map[string]string{
			"proc/self/cgroup": "4:memory:/x\n0::/x\n",
			"proc/self/mountinfo": mountV1 +
				"35 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"sys/fs/cgroup/unified/x/memory.max": "max\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "134217728\n",
			"sys/fs/cgroup/cpu/x/memory.limit_in_bytes": "1\n",
		}, want: 128, why: "limit_in_bytes"},
		"version 1, not limited": {files: map[string]string{
			"proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/x\n", "proc/self/mountinfo": mountV1,
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
		}},
		"version 1, the path of the host in a container": {files: map[string]string{
			"proc/self/cgroup":                           "4:memory:/docker/5f\n",
			"proc/self/mountinfo":                        "34 30 0:30 /docker/5f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "134217728\n",
		}, want: 128},
		"version 1, below the container's group": {files: map[string]string{
			"proc/self/cgroup":                               "4:memory:/docker/5f/job\n",
			"proc/self/mountinfo":                            "34 30 0:30 /docker/5f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/job/memory.limit_in_bytes": "134217728\n",
		}, want: 128, why: "/job/"},
		"version 2, the path leads out of the mount": {files: map[string]string{
			"proc/self/cgroup": "0::/../../other\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/memory.max": "134217728\n", "memory.max": "1\n", "other/memory.max": "1\n",
		}, want: 128},
		"a name with a blank": {files: map[string]string{
			"proc/self/cgroup": "0::/a b\n", "proc/self/mountinfo": "30 23 0:26 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\n",
			"sys/fs/c g/a b/memory.max": "134217728\n",
		}, want: 128},
		"nonsense": {files: map[string]string{
			"proc/meminfo":     "MemTotal:\nMemTotal: x kB\nMemTotal: 99999999999999999 kB\n",
			"proc/self/cgroup": "0\n0::/a\n:::\n4:memory\n", "proc/self/mountinfo": "-\n - \n1 2 3 - cgroup2\n" + mountV2,
			"sys/fs/cgroup/a/memory.max": "-5\n", "sys/fs/cgroup/memory.max": "999999999999999999999999\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := tree(t, c.files)
			l := limits{bytes: Usual}
			l.groups(root)
			l.machine(root)
			b := Of(l.bytes, l.why)
			if c.want == 0 {
				if b != (Budget{}) {
					t.Fatalf("limited to %v", b)
				}
				return
			}
			if b.Bytes() != c.want*mib || !strings.Contains(b.String(), c.why) {
				t.Errorf("got %v, want %d MiB (…%s…)", b, c.want, c.why)
			}
		})
	}
}

// What there is for buffers grows with the memory, from the least to the usual.
func TestPart(t *testing.T) {
	t.Parallel()
	last := int64(10)
	for bytes := int64(0); bytes <= Usual; bytes += mib {
		b := Of(bytes, "")
		n := b.Part(100, 10)
		if n < last || n > 100 || bytes <= Least && n != 10 || (bytes == Usual) != (n == 100) {
			t.Fatalf("%d of 10 to 100 at %d MiB, after %d", n, bytes/mib, last)
		}
		if b.Part(3, 5) != 3 {
			t.Fatal("the least is more than what is usual")
		}
		last = n
	}
	if h := Of(0, "").Heap(); h < 0 || Of(Usual+1, "").Heap() != 200*mib || Of(128*mib, "").Heap() != 100*mib {
		t.Error("the heap's part is another one")
	}
	for _, heap := range []int64{0, 100 * mib, 1 << 62, 1<<63 - 1} {
		if b := ofHeap(heap); b < heap {
			t.Errorf("a heap of %d in %d", heap, b)
		}
	}
}

// Whatever a mountinfo has is read without harm.
func FuzzGroups(f *testing.F) {
	f.Add(mountV1+mountV2, "0::/a\n4:memory:/b\n")
	f.Add("30 23 0:26 /x /\\040\\0\\999 rw - cgroup2 cgroup2 rw\n", "0::/x/../..\n")
	f.Fuzz(func(t *testing.T, mountinfo, group string) {
		l := limits{bytes: Usual}
		l.groups(tree(t, map[string]string{"proc/self/mountinfo": mountinfo, "proc/self/cgroup": group}))
		if l != (limits{bytes: Usual}) && l.why == "" {
			t.Errorf("limited to %d, and nothing is said to do it", l.bytes)
		}
	})
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		room  int64
		n     int
		bytes int64 // of each
	}{{4096, 4, 256}, {512, 4, 128}, {512, 1, 256}, {100, 0, 100}} {
		b := Split(c.room*mib, c.n)
		if b.Bytes() != c.bytes*mib || b.HeapOf(c.n) > c.room*mib {
			t.Errorf("%d MiB for %d: %d each, %d for the heap", c.room, c.n, b.Bytes(), b.HeapOf(c.n))
		}
	}
}

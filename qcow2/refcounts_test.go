// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

// countedImages are images of every kind that has refcounts of its own, after a random life.
func countedImages(t *testing.T, rnd *rand.Rand) []string {
	dir := t.TempDir()
	source := sourceFile(t, dir)
	var paths []string
	for i, options := range []string{
		"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=4k,compression_type=zstd", "cluster_size=64k",
		"cluster_size=16k,extended_l2=on", "cluster_size=4k,preallocation=metadata",
		"cluster_size=4k,refcount_bits=1", "cluster_size=4k,refcount_bits=2", "cluster_size=512,refcount_bits=4",
		"cluster_size=4k,refcount_bits=8", "cluster_size=512,refcount_bits=32", "cluster_size=4k,refcount_bits=64",
		"cluster_size=4k,data_file=" + dir + "/data", "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
	} {
		path := filepath.Join(dir, fmt.Sprintf("image%d", i))
		if strings.Contains(options, "luks") {
			path += "-luks"
		}
		const size = 1 << 20
		secret := []string{"create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o", options, path, "1M"}
		testkit.Tool(t, "qemu-img", secret...)
		if strings.Contains(options, "luks") {
			paths = append(paths, path)
			continue
		}
		cluster := int64(4096)
		if strings.Contains(options, "64k") {
			cluster = 65536
		}
		compressed := !strings.Contains(options, "data_file") && !strings.Contains(options, "refcount_bits=1") && !strings.Contains(options, "extended")
		qemuIO(t, "qcow2", path, life(rnd, 12, size, cluster, source, compressed)...)
		if compressed && !strings.Contains(options, "refcount_bits=2") {
			testkit.Tool(t, "qemu-img", "snapshot", "-c", "one", path)
			qemuIO(t, "qcow2", path, life(rnd, 4, size, cluster, source, false)...)
			testkit.Tool(t, "qemu-img", "snapshot", "-c", "two", path)
			qemuIO(t, "qcow2", path, "write -P 3 17k 33k")
		}
		if !strings.Contains(options, "compat") {
			testkit.Tool(t, "qemu-img", "bitmap", "--add", "-g", "4096", path, "b")
			qemuIO(t, "qcow2", path, "write -P 4 900k 5k")
			testkit.Tool(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, "c")
		}
		paths = append(paths, path)
	}
	return paths
}

// metadata are the places of an image that say how its clusters are used, with the size of what
// stands there, bytes.
func metadata(data []byte) (places []place) {
	be := binary.BigEndian
	add := func(offset, n uint64, unit int64) {
		if end := min(offset+n, uint64(len(data))); offset < end {
			places = append(places, place{int64(offset), int64(end), unit})
		}
	}
	cluster := uint64(1) << be.Uint32(data[20:])
	add(32, 80, 4)
	add(104, 200, 8)
	l1s := [][2]uint64{{be.Uint64(data[40:]), uint64(be.Uint32(data[36:]))}}
	if n := be.Uint32(data[60:]); n > 0 {
		at := be.Uint64(data[64:])
		add(at, 200, 8)
		for range n {
			l1s = append(l1s, [2]uint64{be.Uint64(data[at:]), uint64(be.Uint32(data[at+8:]))})
			at += 40 + uint64(be.Uint16(data[at+12:])) + uint64(be.Uint16(data[at+14:])) + uint64(be.Uint32(data[at+36:]))
			at = (at + 7) &^ 7
		}
	}
	for _, l1 := range l1s {
		add(l1[0], l1[1]*8, 8)
		for i := range l1[1] {
			if l2 := be.Uint64(data[l1[0]+i*8:]) & entryOffset; l2 != 0 {
				add(l2, cluster, 8)
			}
		}
	}
	table := be.Uint64(data[48:])
	add(table, 64, 8)
	for i := uint64(0); i < 8; i++ {
		if block := be.Uint64(data[table+i*8:]); block != 0 {
			add(block, min(cluster, 600), 1)
		}
	}
	if at := strings.Index(string(data[:cluster]), "\x23\x85\x28\x75\x00\x00\x00\x18"); at > 0 {
		dir := be.Uint64(data[at+24:])
		add(dir, 80, 4)
		add(be.Uint64(data[dir:]), 16, 8)
	}
	return places
}

type place struct{ start, end, unit int64 }

// mutate changes a little of what says how clusters are used.
func mutate(data []byte, places []place, rnd *rand.Rand) {
	be := binary.BigEndian
	for range 1 + rnd.IntN(2) {
		p := places[rnd.IntN(len(places))]
		at := p.start + rnd.Int64N((p.end-p.start)/p.unit)*p.unit
		unit := data[at:][:p.unit]
		switch rnd.IntN(6) {
		case 0, 1:
			unit[rnd.IntN(len(unit))] ^= 1 << rnd.IntN(8)
		case 2:
			clear(unit)
		case 3:
			copy(unit, data[p.start+rnd.Int64N((p.end-p.start)/p.unit)*p.unit:][:p.unit])
		case 4:
			if p.unit == 8 {
				be.PutUint64(unit, be.Uint64(unit)+1<<be.Uint32(data[20:]))
			}
		case 5:
			if p.unit == 8 {
				be.PutUint64(unit, be.Uint64(unit)^entryCopied)
			} else {
				unit[len(unit)-1]++
			}
		}
	}
}

// counts counts an image's references; an image that cannot be opened is odd.
func counts(t testing.TB, path string, limits counterLimits) (r Refcounts) {
	count := func(l *Layer) error {
		l.count(t.Context(), limits)
		r = *l.refcounts
		return nil
	}
	c, err := Open(path, Qcow2, OpenOptions{AllowDirs: []string{os.TempDir()}})
	switch {
	case err == nil:
		err = errors.Join(count(c.Layers[0]), c.Close())
	case strings.Contains(err.Error(), "encrypted"):
		err = WithTopLayer(path, count)
	}
	if err != nil {
		r.Odd = err.Error()
	}
	return r
}

// errNotOpened is for an encrypted image that qemu-img does not open, for what its encryption
// header says: there is none to judge its refcounts.
var errNotOpened = errors.New("not opened")

// askQEMU lets qemu-img check an image; the error is that it finds more than leaks, or cannot open it.
func askQEMU(t *testing.T, file string, encrypted bool) (qemu.CheckResult, error) {
	if !encrypted {
		r, err := qemu.Img{}.CheckRefcounts(t.Context(), file)
		return r, errors.Join(err, r.Err())
	}
	cmd := exec.Command("qemu-img", "check", "--object", "secret,id=s,data=x", "--output", "json", "--image-opts",
		"driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename="+file)
	out, err := cmd.Output()
	var r struct{ Leaks int64 }
	if uerr := json.Unmarshal(out, &r); uerr == nil && cmd.ProcessState.ExitCode() == 3 {
		err = nil
	}
	if err != nil && cmd.ProcessState.ExitCode() == 1 {
		err = errNotOpened
	}
	return qemu.CheckResult{Leaks: r.Leaks}, err
}

// smallCounter counts a few clusters at once.
func smallCounter() counterLimits {
	return counterLimits{window: pageClusters, pages: 1, windows: 1 << 20}
}

// Where qemu-img check finds anything but leaks, so do we; and what we find to be in order is so
// for it, with as many leaks. It is asked of real images, and of real images a little of which was
// changed.
func TestRefcountsAsQEMU(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(5, 7))
	rounds := 12
	if more, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		rounds = more
	}
	var clean, leaking, odd, cautious int
	file := filepath.Join(t.TempDir(), "mutated")
	for _, path := range countedImages(t, rnd) {
		original, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		places := metadata(original)
		for round := range rounds {
			data := slices.Clone(original)
			if round > 0 {
				mutate(data, places, rnd)
			}
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			ours := counts(t, file, defaultCounterLimits())
			theirs, err := askQEMU(t, file, strings.Contains(path, "luks"))
			switch {
			case errors.Is(err, errNotOpened):
			case round == 0 && (ours.Odd != "" || err != nil):
				t.Fatalf("%s, as QEMU made it: %+v; %v", path, ours, err)
			case ours.Odd == "" && (err != nil || ours.Leaks != theirs.Leaks):
				keep := filepath.Join(os.TempDir(), fmt.Sprintf("refcounts-%s-%d", filepath.Base(path), round))
				_ = os.WriteFile(keep, data, 0o600)
				t.Errorf("%s, round %d (%s): %d leaks and nothing odd; qemu-img: %+v, %v", path, round, keep, ours.Leaks, theirs, err)
			case ours.Odd != "" && err != nil:
				odd++
			case ours.Odd != "":
				cautious++
				t.Logf("%s, round %d: odd to us alone: %s", path, round, ours.Odd)
			case ours.Leaks > 0:
				leaking++
			default:
				clean++
			}
			if few := counts(t, file, smallCounter()); (few.Odd == "") != (ours.Odd == "") || few.Odd == "" && few.Leaks != ours.Leaks {
				t.Errorf("%s, round %d: %+v in many windows, %+v in one", path, round, few, ours)
			}
		}
	}
	t.Logf("%d clean, %d with leaks, %d corrupt, %d odd to us alone", clean, leaking, odd, cautious)
	if clean < rounds || leaking < rounds/2 || odd < rounds || cautious > odd/4 {
		t.Errorf("%d clean, %d with leaks, %d corrupt, %d odd to us alone", clean, leaking, odd, cautious)
	}
}

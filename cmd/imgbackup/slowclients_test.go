// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// slowClient is a client of an NBD server, by hand: it asks for much, and takes its time with the
// answers.
type slowClient struct{ net.Conn }

func dialSlow(socket, export string) (*slowClient, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &slowClient{conn}
	var hello [18]byte // magic, magic of options, flags
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return nil, err
	}
	// Fixed newstyle, no zeroes; then the option that names the export.
	ask := binary.BigEndian.AppendUint32(nil, 3)
	ask = append(ask, "IHAVEOPT"...)
	ask = binary.BigEndian.AppendUint32(ask, 1)
	ask = binary.BigEndian.AppendUint32(ask, uint32(len(export)))
	if _, err := c.Write(append(ask, export...)); err != nil {
		return nil, err
	}
	var info [10]byte // size and flags
	_, err = io.ReadFull(c, info[:])
	return c, err
}

// ask sends a request for a MiB.
func (c *slowClient) ask(mib int) error {
	req := binary.BigEndian.AppendUint32(nil, 0x25609513)
	req = binary.BigEndian.AppendUint32(req, 0) // no flags, read
	req = binary.BigEndian.AppendUint64(req, uint64(mib))
	req = binary.BigEndian.AppendUint64(req, uint64(mib)<<20)
	_, err := c.Write(binary.BigEndian.AppendUint32(req, 1<<20))
	return err
}

// take takes an answer, whose first byte was taken already, and compares it with the disk.
func (c *slowClient) take(first bool, disk []byte) error {
	var head [16]byte
	n := 0
	if first {
		head[0], n = 0x67, 1
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return err
	}
	if magic, code := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:]); magic != 0x67446698 || code != 0 {
		return errors.New("not a good answer")
	}
	data := make([]byte, 1<<20)
	if _, err := io.ReadFull(c, data); err != nil {
		return err
	}
	if at := binary.BigEndian.Uint64(head[8:]) << 20; !bytes.Equal(data, disk[at:][:1<<20]) {
		return errors.New("other bytes")
	}
	return nil
}

// TestSlowClients: 64 clients that ask for much, and read nothing of it, don't make a server with little memory
// take more than it may have in hand for them: chunks that are in use count, too.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const clients, size = 64, 128 // MiB
	w := newWorld(t, 1)
	disk := make([]byte, size<<20)
	rand.NewChaCha8([32]byte{9}).Read(disk)
	raw := filepath.Join(w.dir, "random.raw")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("backup", "vm", "--disk", "vda="+raw+",format=raw", "--compression", "none")
	peak := func(clients, each int) int64 {
		name := filepath.Join(w.dir, strconv.Itoa(clients))
		tmp := t.TempDir() // all that the server may write to
		s := &server{}
		// With 96 MiB the cache has 12, and each connection 2.
		cmd := w.child([]string{"GOMEMLIMIT=75MiB", "TMPDIR=" + tmp, tellPeak + "=" + tmp + "/peak"}, "serve", "vm", "--socket", name, "--connections", strconv.Itoa(clients))
		if err := s.start(cmd); err != nil {
			t.Fatal(err)
		}
		all := make([]*slowClient, clients)
		for i := range all {
			var err error
			if all[i], err = dialSlow(name, "vda"); err != nil {
				t.Fatal(err)
			}
			defer all[i].Close()
			for k := range each {
				if err := all[i].ask((i*each + k*7) % size); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, c := range all { // an answer to each is under way
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		var g errgroup.Group
		for _, c := range all {
			g.Go(func() error {
				for k := range each {
					if err := c.take(k == 0, disk); err != nil {
						return err
					}
				}
				return c.Close()
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if code, err := s.end(unix.SIGTERM); code != exitDone || err != nil {
			t.Fatalf("exit status %d, %v: %s", code, err, s.stderr.String())
		}
		return readPeak(t, filepath.Join(tmp, "peak"))
	}
	// The cache has 12 MiB, and what is in hand for a client is 2; they ask for 12 each, of all of the disk.
	most, base := int64(clients*2+12)<<20, peak(1, 1)
	if raceDetector() {
		most *= 4 // what it notes of memory
	}
	got := peak(clients, 12)
	if got > base+most+most/4 {
		t.Errorf("%d MiB for %d clients, and %d MiB for one: more than %d MiB each, and the cache", got>>20, clients, base>>20, 2)
	}
}

// raceDetector reports whether this binary was built with it.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
)

func TestServiceURIs(t *testing.T) {
	t.Parallel()
	a := &app{quiet: true, program: program{serving: &atomic.Bool{}}}
	path := filepath.Join(t.TempDir(), "a b&c")
	for _, c := range []struct {
		flags      listenFlags
		want, tail string
	}{
		{listenFlags{socket: path}, "nbd+unix:///vda%20/", "?socket=" + strings.ReplaceAll(path, "a b&c", "a%20b%26c")},
		{listenFlags{address: "127.0.0.1:0"}, "nbd://127.0.0.1:", "/vda%20/"},
		{listenFlags{address: "[::1]:0"}, "nbd://[::1]:", "/vda%20/"},
		{listenFlags{address: "localhost:0"}, "nbd://localhost:", "/vda%20/"},
		{listenFlags{address: ":0", insecure: true}, "nbd://localhost:", "/vda%20/"},
	} {
		s, err := a.listenNBD(t.Context(), c.flags)
		if err != nil {
			t.Fatal(err)
		}
		if uri := s.uri("vda /"); !strings.HasPrefix(uri, c.want) || !strings.HasSuffix(uri, c.tail) {
			t.Errorf("%v: %s", c.flags, uri)
		}
		s.close()
	}
	for _, flags := range []listenFlags{
		{},
		{socket: path, address: "localhost"},
		{socket: path, cert: "cert.pem"},
		{socket: path, key: "key.pem"},
		{socket: path, ca: "ca.pem"},
		{address: ":0"},
		{address: "0.0.0.0:0"},
	} {
		if _, err := a.listenNBD(t.Context(), flags); exitCode(t.Context(), err) != exitUsage {
			t.Errorf("%v: %v", flags, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := a.listenNBD(t.Context(), listenFlags{address: l.Addr().String()}); exitCode(t.Context(), err) != exitInUse {
		t.Errorf("an address in use: %v", err)
	}
}

// brokenDevice cannot be read.
type brokenDevice struct{ err error }

func (d brokenDevice) ReadAt(context.Context, []byte, int64) error { return d.err }

// zeros is a device that can always be read.
type zeros struct{}

func (zeros) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }

// Each disk of a guest can be connected to, and whoever is sent away is told of with what
// to do about it.
func TestConnections(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ most, disks, clients int }{{0, 1, 16}, {0, 20, 40}, {3, 20, 3}} {
		var stderr bytes.Buffer
		a := &app{program: program{err: &stderr, serving: &atomic.Bool{}}}
		path := filepath.Join(t.TempDir(), "s")
		s, err := a.listenNBD(t.Context(), listenFlags{socket: path, most: c.most})
		if err != nil {
			t.Fatal(err)
		}
		var exports []nbd.Export
		for i := range c.disks {
			exports = append(exports, nbd.Export{Name: fmt.Sprintf("vd%d", i), Size: 1 << 20, Device: zeros{}})
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.serve(ctx, exports) }()
		var clients []*nbd.Client
		for i := range c.clients {
			client, err := nbd.Dial(t.Context(), "unix", path, nbd.ClientOptions{Export: exports[i%c.disks].Name})
			if err != nil {
				t.Fatalf("%+v: client %d: %v", c, i, err)
			}
			clients = append(clients, client)
		}
		if _, err := nbd.Dial(t.Context(), "unix", path, nbd.ClientOptions{Export: "vd0"}); err == nil {
			t.Errorf("%+v: one more was served", c)
		}
		for i, client := range clients {
			if err := client.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
				t.Errorf("%+v: client %d: %v", c, i, err)
			}
			_ = client.Close() // read from, no more
		}
		cancel(errInterrupted)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !strings.Contains(stderr.String(), "--connections") {
			t.Errorf("%+v: told: %q", c, &stderr)
		}
		s.close()
	}
	for _, most := range []int{-1, 257} {
		var wrong *usage.Error
		if _, err := new(app).listenNBD(t.Context(), listenFlags{most: most}); !errors.As(err, &wrong) {
			t.Errorf("%d: %v", most, err)
		}
	}
}

// What clients could not be served reaches the exit status, and is told once.
func TestServiceFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code int
	}{
		{errors.New("this disk is on fire"), exitFailed},
		{&archive.DamageError{Object: "packs/x"}, exitDamage},
		{nil, exitDone},
	} {
		var stderr bytes.Buffer
		a := &app{program: program{err: &stderr, serving: &atomic.Bool{}}}
		path := filepath.Join(t.TempDir(), "s")
		s, err := a.listenNBD(t.Context(), listenFlags{socket: path})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.serve(ctx, []nbd.Export{{Name: "vda", Size: 1 << 20, Device: brokenDevice{c.err}}})
		}()
		client, err := nbd.Dial(t.Context(), "unix", path, nbd.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := client.ReadAt(t.Context(), make([]byte, 512), 1024); (err == nil) != (c.err == nil) {
				t.Errorf("read: %v", err)
			}
		}
		cancel(errInterrupted)
		err = <-done
		if code := exitCode(t.Context(), err); err == nil && c.err != nil || err != nil && code != c.code {
			t.Errorf("%v: exit status %d, want %d (%v)", c.err, code, c.code, err)
		}
		if n := strings.Count(stderr.String(), "vda: read"); n != min(1, c.code) {
			t.Errorf("told %d times: %s", n, &stderr)
		}
		_ = client.Close() // the server has ended already
		s.close()
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestServiceURIs(t *testing.T) {
	t.Parallel()
	a := &app{quiet: true}
	path := filepath.Join(t.TempDir(), "a b&c")
	for _, c := range []struct {
		flags      listenFlags
		want, tail string
	}{
		{listenFlags{socket: path}, "nbd+unix:///vda%20/", "?socket=" + strings.ReplaceAll(path, "a b&c", "a%20b%26c")},
		{listenFlags{address: "127.0.0.1:0"}, "nbd://127.0.0.1:", "/vda%20/"},
		{listenFlags{address: "[::1]:0"}, "nbd://[::1]:", "/vda%20/"},
		{listenFlags{address: "localhost:0"}, "nbd://localhost:", "/vda%20/"},
		{listenFlags{address: ":0"}, "nbd://localhost:", "/vda%20/"},
	} {
		s, err := a.listenNBD(c.flags)
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
	} {
		if _, err := a.listenNBD(flags); exitCode(t.Context(), err) != exitUsage {
			t.Errorf("%v: %v", flags, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := a.listenNBD(listenFlags{address: l.Addr().String()}); exitCode(t.Context(), err) != exitFailed {
		t.Errorf("an address in use: %v", err)
	}
}

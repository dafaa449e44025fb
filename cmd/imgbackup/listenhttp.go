// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/imgbackup/imgbackup/httpserve"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
)

const (
	httpPort = "8080"
	// maxToken bounds what is read of a file of a token, bytes.
	maxToken = 4096
)

// listenHTTP listens where disks are offered over HTTP.
func (s *nbdService) listenHTTP(f listenFlags) (err error) {
	if f.once {
		return usage.Errorf("--once needs NBD: over HTTP nobody knows which client is the last")
	}
	s.http, s.name = true, f.http
	if host, _, err := net.SplitHostPort(f.http); err == nil {
		s.name = host
	}
	if f.token != "" {
		if s.token, err = readToken(f.token); err != nil {
			return fmt.Errorf("--http-token: %w", err)
		}
	}
	return s.listenTCP("--http", f.http, httpPort)
}

// readToken reads the one line of a file.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(data) > maxToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("%s: want one line with one word of at most %d bytes", path, maxToken)
	}
	return token, nil
}

// under says where the disks lie over HTTP, and whose bytes they are: those of another
// identity may differ.
func (s *nbdService) under(identity string, folders ...string) {
	if s.http {
		s.folder, s.identity = strings.Join(folders, "/")+"/", identity
	}
}

func (s *nbdService) serveHTTP(ctx context.Context, exports []nbd.Export, notify func(error)) error {
	var disks []httpserve.Disk
	for _, e := range exports {
		d := httpserve.Disk{Export: e, Path: s.folder + e.Name, Identity: s.identity + "-" + escapeURI(e.Name)}
		if s.latest != "" {
			d.Also = s.latest + e.Name
		}
		disks = append(disks, d)
	}
	server, err := httpserve.New(disks, httpserve.Options{
		Token: s.token, Name: s.name, TLS: s.tls, Connections: s.most, Memory: s.a.memory.Part(nbd.ServerMemory, 32<<20), Notify: notify,
	})
	if err != nil {
		return err
	}
	return server.Serve(ctx, s.listeners[0])
}

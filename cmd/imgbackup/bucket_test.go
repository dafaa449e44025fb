// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// bucket is a place for a repository in a real server.
type bucket struct {
	server *s3test.Server
	name   string
	prefix string
	proxy  string   // URL of the proxy that programs talk to, if any
	query  string   // of the name, with its ?
	more   []string // of the environment of programs
	init   []string // flags of init
	copies *atomic.Int64
}

func newBucket(server *s3test.Server) *bucket {
	return &bucket{server: server, name: server.Bucket(), prefix: "site", copies: new(atomic.Int64)}
}

func (b *bucket) String() string { return "s3://" + b.name + "/" + b.prefix + b.query }

// inits is the command line of init.
func (b *bucket) inits() []string {
	if b == nil {
		return []string{"init"}
	}
	return append([]string{"init"}, b.init...)
}

// env is what programs find in their environment.
func (b *bucket) env() []string {
	if b == nil {
		return nil
	}
	env := b.server.Env()
	if b.proxy != "" {
		env = append(env, "AWS_ENDPOINT_URL_S3="+b.proxy)
	}
	return append(env, b.more...)
}

// behind lets programs talk to a proxy with these faults.
func (b *bucket) behind(t testing.TB, faults ...s3test.Fault) *s3test.Proxy {
	p := s3test.NewProxy(t, b.server, faults...)
	b.proxy = p.URL
	return p
}

// open opens the place, without a proxy.
func (b *bucket) open(t testing.TB) objstore.Store {
	t.Helper()
	s, err := s3.Open(b.server.Config(b.name, b.prefix))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return retry.New(s, retry.Options{FirstDelay: 5 * time.Millisecond, MaxDelay: 100 * time.Millisecond})
}

// wrap lets a program that runs within this process, and so has no environment
// of its own, use the place.
func (b *bucket) wrap(t testing.TB, more func(objstore.Store) objstore.Store) func(objstore.Store) objstore.Store {
	return func(objstore.Store) objstore.Store {
		s := b.open(t)
		if more != nil {
			s = more(s)
		}
		return s
	}
}

// copy copies all objects to a prefix of its own.
func (b *bucket) copy(t testing.TB) *bucket {
	t.Helper()
	if b == nil {
		return nil
	}
	c := *b
	c.proxy = ""
	c.prefix = fmt.Sprintf("copy-%d", b.copies.Add(1))
	from, to := b.open(t), c.open(t)
	for _, key := range b.keys(t) {
		r, err := from.Get(context.Background(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		_ = r.Close()
		if err == nil {
			err = to.Put(context.Background(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Create})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &c
}

// keys lists all objects.
func (b *bucket) keys(t testing.TB) []string {
	t.Helper()
	var keys []string
	for info, err := range b.open(t).List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// verifyTidy demands that no intent or lease is left.
func (b *bucket) verifyTidy(t testing.TB) {
	t.Helper()
	for _, key := range b.keys(t) {
		if parts := strings.Split(key, "/"); slices.Contains(parts, "intents") || slices.Contains(parts, "leases") || parts[0] == "probe" {
			t.Errorf("left behind: %s", key)
		}
	}
}

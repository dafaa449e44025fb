// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"strings"

	"github.com/imgbackup/imgbackup/objstore"
)

// Listing is what lies under keys/, asked for beside the configuration: a store may be far away,
// and what opens the keys is asked for in as few steps as can be.
type Listing struct {
	done chan struct{}
	all  []objstore.Info
	err  error
}

// mostListed bounds a listing: of more, what is wanted is asked for by itself.
const mostListed = 1000

// List asks what lies under keys/, and does not wait for the answer.
func List(ctx context.Context, store objstore.Store) *Listing {
	l := &Listing{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for info, err := range store.List(ctx, Prefix) {
			if l.err = err; err != nil || len(l.all) == mostListed {
				l.all = nil // incomplete ones tell nothing
				return
			}
			l.all = append(l.all, info)
		}
	}()
	return l
}

// wait returns what is there; nil: it is not known, and to be asked again.
func (l *Listing) wait(ctx context.Context) []objstore.Info {
	if l == nil {
		return nil
	}
	select {
	case <-l.done:
		return l.all
	case <-ctx.Done():
		return nil
	}
}

// ahead are objects that are being read.
type ahead map[string]*begun

type begun struct {
	done chan struct{}
	data []byte
	err  error
}

// What is read before it is known to be wanted: so many files of the member that is expected, or
// of all, if there are no more than so many; and of what stands, the newest list that is not long.
const (
	mostAhead    = 64
	mostOfAll    = 16
	longestAhead = 4 << 20 // bytes
)

// readAhead begins to read what opens the keys, besides the roster: what a member may have
// under keys/, or all that anybody has if it is not known whose the identity is ("").
func readAhead(ctx context.Context, store objstore.Store, all []objstore.Info, member string) ahead {
	suffix, most := "/"+member+ageSuffix, mostAhead
	if member == "" {
		suffix, most = ageSuffix, mostOfAll
	}
	var files []string
	var newest objstore.Info // of the lists of what stands
	for _, info := range all {
		switch {
		case strings.HasSuffix(info.Key, suffix):
			files = append(files, info.Key)
		case ParseKey(info.Key).Kind == StandingObject && !info.Stored.Before(newest.Stored):
			newest = info
		}
	}
	a := make(ahead)
	if len(files) <= most {
		for _, key := range files {
			a.begin(ctx, store, key, maxFile)
		}
	}
	if newest.Key != "" && newest.Size <= longestAhead {
		a.begin(ctx, store, newest.Key, longestAhead)
	}
	return a
}

func (a ahead) begin(ctx context.Context, store objstore.Store, key string, limit int64) {
	b := &begun{done: make(chan struct{})}
	a[key] = b
	go func() {
		defer close(b.done)
		b.data, b.err = read(ctx, store, key, limit)
	}()
}

// read is the function read, or what that is about to return.
func (a ahead) read(ctx context.Context, store objstore.Store, key string, limit int64) ([]byte, error) {
	b := a[key]
	if b == nil {
		return read(ctx, store, key, limit)
	}
	select {
	case <-b.done:
		return b.data, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

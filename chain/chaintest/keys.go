// SPDX-License-Identifier: Apache-2.0

package chaintest

import (
	"context"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Keys are the keys of an encrypted repository, of which nothing is signed.
type Keys struct {
	All  *crypt.Keys // both halves
	Host *crypt.Keys // of the data key only what encrypts
}

// NewKeys makes keys.
func NewKeys(t TB) *Keys {
	t.Helper()
	g, err := crypt.Generate(1, false)
	if err != nil {
		t.Fatal(err)
	}
	k := &Keys{}
	if k.All, err = crypt.New(g); err != nil {
		t.Fatal(err)
	}
	g.Data.Identity = nil
	if k.Host, err = crypt.New(g); err != nil {
		t.Fatal(err)
	}
	return k
}

// Options have a repository made with these keys; nil: a plain one.
func (k *Keys) Options() chain.InitOptions {
	if k == nil {
		return chain.InitOptions{}
	}
	return chain.InitOptions{
		Encrypt: func(context.Context, objstore.Store, string) (*chain.Encryption, *chain.Access, error) {
			return &chain.Encryption{Scheme: chain.EncryptionScheme, RosterKey: "none"}, &chain.Access{Keys: k.All}, nil
		},
	}
}

// Init makes a repository; with nil keys a plain one.
func Init(ctx context.Context, store objstore.Store, k *Keys) (*chain.Repository, error) {
	return chain.Init(ctx, store, k.Options())
}

// Whole opens it with both halves of the keys; nil: it is plain.
func (k *Keys) Whole(ctx context.Context, store objstore.Store) (*chain.Repository, error) {
	if k == nil {
		return Open(ctx, store, nil)
	}
	return Open(ctx, store, k.All)
}

// Open opens it with these keys; nil: it is plain.
func Open(ctx context.Context, store objstore.Store, k *crypt.Keys) (*chain.Repository, error) {
	return chain.OpenWith(ctx, store, func(context.Context, objstore.Store, *chain.Config) (*chain.Access, error) {
		if k == nil {
			return nil, nil
		}
		return &chain.Access{Keys: k}, nil
	})
}

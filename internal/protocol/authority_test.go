// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// authority is a roster in which everybody is who they say they are: whether signatures are
// right is not what worlds are about.
type authority struct {
	name    string
	manages bool
	store   objstore.Store // where newer keys would be; nil: there are none
}

// newerKeys is where the keys are that worlds rotate to; it has what stood then.
const newerKeys = "keys/roster/2.json"

var errRotated = errors.New("keys were rotated")

// hosts are the processes of the worlds that have a host's key only.
func isHost(name string) bool { return name[0] == 'W' }

func (a authority) Signer() (seal.Signer, error) { return a, nil }
func (a authority) Self() chain.Author           { return a }
func (a authority) Sign([]byte) ([]byte, error)  { return make([]byte, 64), nil }

func (a authority) States(key string) seal.Statement {
	return seal.Statement{By: a.name, Generation: 1, Repository: "r", Key: key}
}

func (a authority) Check(_, _ string, s *seal.Signature) (chain.Author, error) {
	if s == nil { // what stood there before anybody began
		return authority{"admin", true, nil}, nil
	}
	return authority{s.By, !isHost(s.By), nil}, nil
}

func (a authority) CheckNotRotated(ctx context.Context) error {
	if a.store == nil {
		return nil
	}
	_, err := a.store.Stat(ctx, newerKeys)
	if err == nil {
		return errRotated
	}
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	return err
}

func (a authority) AuthorName() string { return a.name }
func (a authority) Manages() bool      { return a.manages }
func (a authority) Covers(string) bool { return true }
func (a authority) Rehearses() bool    { return a.manages }

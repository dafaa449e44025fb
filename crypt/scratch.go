// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"io"

	"filippo.io/age"
)

// Scratch is a key that is never stored: for what this process keeps in temporary files and
// reads again itself.
type Scratch struct{ id *age.X25519Identity }

// NewScratch makes one.
func NewScratch() (*Scratch, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	return &Scratch{id: id}, nil
}

// Writer encrypts what is written to it into w; Close ends it and does not close w.
func (s *Scratch) Writer(w io.Writer) (io.WriteCloser, error) {
	return age.Encrypt(w, s.id.Recipient())
}

// Reader decrypts what Writer wrote.
func (s *Scratch) Reader(r io.Reader) (io.Reader, error) { return age.Decrypt(r, s.id) }

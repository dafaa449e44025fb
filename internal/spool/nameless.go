// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"io"
	"os"
)

// Nameless returns a temporary file, in [TempDir], that holds what r gives, and has no name. what
// it is, is for messages.
func Nameless(what string, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(TempDir(), "imgbackup-*.tmp")
	if err != nil {
		return nil, fileError(what, err)
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, r)
	}
	if err != nil {
		return nil, errors.Join(fileError(what, err), f.Close())
	}
	return f, nil
}

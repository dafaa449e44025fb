// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"io"
)

// FailureReader remembers why reading failed, so that who decodes what is read does not take an outage
// for damage.
type FailureReader struct {
	R   io.Reader
	Err error // nil: it has not failed
}

// Read implements [io.Reader].
func (f *FailureReader) Read(p []byte) (int, error) {
	n, err := f.R.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Err = err
	}
	return n, err
}

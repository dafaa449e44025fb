// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// recordError says that a record is there, and can't be read.
type recordError struct {
	path string
	err  error
}

func (e *recordError) Error() string { return e.path + ": " + e.err.Error() }
func (e *recordError) Unwrap() error { return e.err }

// readRecord reads a record of at most so many bytes; what is no JSON is a *recordError.
func readRecord(path string, most int64, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if err := json.NewDecoder(io.LimitReader(f, most)).Decode(v); err != nil {
		return &recordError{path, err}
	}
	return nil
}

// recordNames are the names of the records in a folder, sorted; none, if it is not there.
func recordNames(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

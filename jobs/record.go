// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
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
	text, err := sys.ReadBounded(path, most)
	var unfit *sys.UnfitError
	if errors.As(err, &unfit) {
		return &recordError{path, errors.New("it " + unfit.Why)}
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
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

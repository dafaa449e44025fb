// SPDX-License-Identifier: Apache-2.0

package usage_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
)

func TestWrong(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("disk vda: %w", usage.Errorf("format %q: %w", "x", fs.ErrNotExist))
	if !errors.Is(err, usage.ErrWrong) || !errors.Is(err, fs.ErrNotExist) || err.Error() != `disk vda: format "x": file does not exist` {
		t.Errorf("got %v", err)
	}
	if err := usage.Wrap(fs.ErrNotExist); !errors.Is(err, usage.ErrWrong) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if usage.Wrap(nil) != nil || errors.Is(fs.ErrNotExist, usage.ErrWrong) {
		t.Error("what is no wrong usage is taken for it")
	}
}

// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Prober = (*Store)(nil)

// Probe implements objstore.Prober: some file systems, among them many on FUSE, have
// no call that gives a file a name only if nothing has it.
func (l *Store) Probe(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t, err := l.newTemp()
	if err != nil {
		return fmt.Errorf("try the folder: %w", explain(err))
	}
	defer t.discard()
	name := randomName()
	err = t.linkTo(t.dir, name, filepath.Join(l.dir, objstore.TempFolder, name))
	if errors.As(err, new(*objstore.NoConditionsError)) {
		return err
	}
	if err == nil {
		err = sys.UnlinkAt(t.dir, name)
	}
	if err != nil {
		return fmt.Errorf("try the folder: %w", explain(err))
	}
	return nil
}

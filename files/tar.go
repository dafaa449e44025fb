// SPDX-License-Identifier: Apache-2.0

package files

import (
	"context"
	"io"
	"strings"
)

// Tar writes what is at paths, and below, as a tar archive whose names are those in the
// guest, without symbolic links on the way and the first slash.
func (l *Look) Tar(ctx context.Context, paths []string, w io.Writer) error {
	return l.truth(ctx, l.tar(ctx, paths, w))
}

func (l *Look) tar(ctx context.Context, paths []string, w io.Writer) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	var names []string
	for _, at := range paths {
		real, err := l.place(ctx, at, false)
		if err != nil {
			return err
		}
		if _, err := l.guest.Lstat(ctx, real); err != nil {
			return err
		}
		name := strings.TrimPrefix(real, "/")
		if name == "" {
			name = "."
		}
		names = append(names, name)
	}
	return l.guest.Tar(ctx, "/", names, w)
}

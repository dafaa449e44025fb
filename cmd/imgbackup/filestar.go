// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/internal/usage"
)

func filesTar() fileCommand {
	return fileCommand{
		name: "tar", takes: "[PATH…]", paths: "perhaps PATHs", most: -1, here: true, suggest: []string{"archive", "export"},
		short: "Write files and folders to stdout as a tar archive",
		long: `tar writes files, and folders with all that lies in them (/ by default), to stdout as a tar archive in the form of
POSIX, as it comes: with owners as numbers, modes, times, holes, extended attributes, ACLs and SELinux labels. Names
are those in the guest without the first slash. The archive is whole only if the exit status is 0.`,
		example: "  imgbackup files tar web /etc /home | zstd >web.tar.zst\n  imgbackup files tar web --checkpoint monday /srv | tar -tv",
		make: func(a *app, _ *pflag.FlagSet) fileWork {
			before := func() error {
				if a.toTerminal() {
					return usage.Errorf("files tar writes an archive to stdout, which is a terminal: send it to a file, or a program")
				}
				return nil
			}
			return fileWork{before, func(ctx context.Context, l *files.Look, paths []string) error {
				return l.Tar(ctx, paths, &stopped{ctx, a.data})
			}}
		},
	}
}

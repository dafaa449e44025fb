// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/files"
)

func filesCat() fileCommand {
	return fileCommand{
		name: "cat", takes: "PATH…", paths: "at least one PATH", least: 1, most: -1, suggest: []string{"read", "print", "show"},
		short: "Write the content of files to stdout",
		long: `cat writes the content of plain files of the guest to stdout, byte for byte, one after the other. Symbolic links
are followed as they lead in the guest.`,
		example: "  imgbackup files cat web /etc/fstab\n  imgbackup files cat web --checkpoint monday /var/lib/app.db >app.db",
		make: func(a *app, _ *pflag.FlagSet) fileWork {
			return fileWork{run: func(ctx context.Context, l *files.Look, paths []string) error {
				for _, at := range paths {
					if err := l.Cat(ctx, at, &stopped{ctx, a.data}); err != nil {
						if errors.Is(err, unix.EPIPE) { // who reads has enough
							return nil
						}
						return err
					}
				}
				return nil
			}}
		},
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
)

func filesStat() fileCommand {
	return fileCommand{
		name: "stat", takes: "PATH…", paths: "at least one PATH", least: 1, most: -1, suggest: []string{"info"},
		short: "Tell all about a file of the guest",
		long: `stat tells the type, size, owner, mode, times and inode of files, folders or whatever has a name in the guest.
A symbolic link is told about itself, and where it leads to.`,
		example: "  imgbackup files stat web /etc/shadow\n  imgbackup files stat web --checkpoint monday /etc/shadow --json",
		make: func(a *app, _ *pflag.FlagSet) fileWork {
			return fileWork{run: func(ctx context.Context, l *files.Look, paths []string) error {
				out := struct {
					Domain     string      `json:"domain"`
					Checkpoint string      `json:"checkpoint"`
					Entries    []entryJSON `json:"entries"`
				}{l.Manifest.Domain, l.Manifest.Checkpoint, []entryJSON{}}
				w := &checkedWriter{w: a.out}
				for _, at := range paths {
					e, err := l.Stat(ctx, at, false)
					if err != nil {
						return err
					}
					if a.json {
						out.Entries = append(out.Entries, viewEntry(e))
						continue
					}
					printEntry(w, e)
				}
				if a.json {
					return a.printJSON(out)
				}
				return w.err
			}}
		},
	}
}

// printEntry tells a person all about something.
func printEntry(w *checkedWriter, e *guestfs.Entry) {
	w.printf("%s\n", entryName(e))
	w.printf("  type      %s\n", kindNames[e.Mode&unix.S_IFMT])
	w.printf("  size      %s (%d bytes)\n", size(e.Size), e.Size)
	w.printf("  mode      %s (%04o)\n", modeText(e.Mode), e.Mode&0o7777)
	w.printf("  owner     %d:%d\n", e.UID, e.GID)
	w.printf("  modified  %s\n", shortTime(e.Modified))
	w.printf("  changed   %s\n", shortTime(e.Changed))
	w.printf("  inode     %d, %s\n", uint64(e.Inode), count(int(e.Links), "name"))
}

func filesVolumes() fileCommand {
	return fileCommand{
		name: "volumes", suggest: []string{"filesystems", "partitions", "lsblk"},
		short: "List the volumes on the disks",
		long: `volumes lists where there is a file system, or could be: partitions, logical volumes, RAIDs, whole disks and opened
LUKS volumes, by the names that --volume takes.`,
		example: "  imgbackup files volumes web\n  imgbackup files volumes web --luks-key /dev/sda2=web.key",
		make: func(a *app, _ *pflag.FlagSet) fileWork {
			return fileWork{run: func(ctx context.Context, l *files.Look, _ []string) error {
				all, err := l.Volumes(ctx)
				if err != nil {
					return err
				}
				if a.json {
					if all == nil {
						all = []guestfs.Volume{}
					}
					return a.printJSON(struct {
						Domain     string           `json:"domain"`
						Checkpoint string           `json:"checkpoint"`
						Volumes    []guestfs.Volume `json:"volumes"`
					}{l.Manifest.Domain, l.Manifest.Checkpoint, all})
				}
				w := &checkedWriter{w: a.out}
				for _, v := range all {
					more := ""
					switch {
					case v.Opened:
						more = "  opened by its key"
					case v.Encrypted():
						more = "  encrypted"
					}
					w.printf("%s  %s  %s%s\n", escaped(v.Device), escaped(v.Type), strings.Join(v.Disks, ","), more)
				}
				return w.err
			}}
		},
	}
}

// rooted is where something lies in the guest, of what lies below a path.
func rooted(at, below string) string {
	if below == "" {
		return at
	}
	return fmt.Sprintf("%s/%s", strings.TrimSuffix(at, "/"), below)
}

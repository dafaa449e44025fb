// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// errLeftOut is the end of what took out all but something.
var errLeftOut = errors.New("not all could be taken out")

func filesGet() fileCommand {
	return fileCommand{
		name: "get", takes: "PATH… --output DIR", paths: "at least one PATH", least: 1, most: -1, suggest: []string{"restore", "extract", "copy", "cp"},
		short: "Take files and folders out of an archived disk",
		long: `get makes copies of files, and of folders with all that lies in them, in DIR, each under its last name: with modes and
times, as root with owners, holes kept. A file appears under its name when it is whole; nothing that is there is
replaced. Symbolic links in folders are made as they are, and never followed.

Device nodes, FIFOs and the right to run as another user (set-uid) are left out, unless root asks for them by
--special; extended attributes are left out always (files tar has them). What cannot be made here, such as a name
that would lead out of DIR, is left out and told, and the exit status is 1.`,
		example: `  imgbackup files get web /etc/nginx /home/anna/letter.ods --output /tmp/web
  imgbackup files get web --checkpoint monday --volume /dev/sdb1 / --output /srv/data`,
		make: func(a *app, f *pflag.FlagSet) fileWork {
			output := f.String("output", "", "the `DIR` that copies are made in; it is made, if it is not there")
			special := f.Bool("special", false, "as root: make device nodes, FIFOs and set-uid files, too")
			section(f, whereTo, "output")
			before := func() error {
				if *output == "" {
					return usage.Errorf("files get needs --output DIR")
				}
				if *special && os.Geteuid() != 0 {
					return usage.Errorf("--special is for root")
				}
				return a.checkOutside("--output", *output)
			}
			return fileWork{before, func(ctx context.Context, l *files.Look, paths []string) error {
				if err := os.MkdirAll(*output, 0o777); err != nil {
					return err
				}
				got, err := l.Get(ctx, paths, *output, files.GetOptions{Special: *special})
				if err == nil || archive.IsDamage(err) || errors.As(err, new(*guestfs.CallError)) { // others may be there
					err = errors.Join(err, a.printGot(l, *output, got))
				}
				if err != nil {
					return err
				}
				if got.LeftOut > 0 {
					return fmt.Errorf("%w: %d were left out", errLeftOut, got.LeftOut)
				}
				return nil
			}}
		},
	}
}

// leftOutJSON is something that could not be made.
type leftOutJSON struct {
	Path    string `json:"path"`
	PathRaw string `json:"path_base64,omitempty"`
	Reason  string `json:"reason"`
}

func (a *app) printGot(l *files.Look, output string, got *files.Got) error {
	if a.json {
		out := struct {
			Domain     string `json:"domain"`
			Checkpoint string `json:"checkpoint"`
			Output     string `json:"output"`
			*files.Got
			First []leftOutJSON `json:"left_out_first,omitempty"`
		}{Domain: l.Manifest.Domain, Checkpoint: l.Manifest.Checkpoint, Output: output, Got: got}
		for _, one := range got.First {
			o := leftOutJSON{Reason: one.Why}
			o.Path, o.PathRaw = jsonName(one.Path)
			out.First = append(out.First, o)
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	w.printf("%s, %s, %s: %s, in %s\n", count(int(got.Files), "file"), count(int(got.Folders), "folder"), count(int(got.Links), "link"), size(got.Bytes), output)
	if got.Special > 0 {
		w.printf("%s\n", plural(int(got.Special), "device node or FIFO", "device nodes and FIFOs"))
	}
	if got.Skipped > 0 {
		w.printf("skipped: %s (--special makes them)\n", plural(int(got.Skipped), "device node or FIFO", "device nodes and FIFOs"))
	}
	for _, one := range got.First {
		w.printf("left out: %s: %s\n", escaped(one.Path), oneLine(one.Why))
	}
	if more := got.LeftOut - int64(len(got.First)); more > 0 {
		w.printf("left out: %d more\n", more)
	}
	return w.err
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// version is what the module's build information says.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "0.1.0-dev"
	}
	return info.Main.Version
}

// tool is what manifests say of the program that made them.
func tool() string { return "imgbackup " + version() }

// built is what Go has recorded of how the program was made.
type built struct {
	commit   string // of the source; empty: not known
	time     string // of the commit, RFC 3339
	modified bool   // the source was not as in that commit
}

func builtOf() (b built) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value
		case "vcs.time":
			b.time = s.Value
		case "vcs.modified":
			b.modified = s.Value == "true"
		}
	}
	return b
}

// versionJSON is what version --json prints.
type versionJSON struct {
	Version  string     `json:"version"`
	Format   int        `json:"format"` // of repositories: the newest that is read
	Commit   string     `json:"commit,omitempty"`
	Time     string     `json:"commit_time,omitempty"`
	Modified bool       `json:"modified,omitempty"`
	Go       string     `json:"go"`
	Platform string     `json:"platform"`
	QEMU     *foundJSON `json:"qemu_img,omitempty"`
}

// foundJSON is a program that was found.
type foundJSON struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

func (a *app) printVersion(ctx context.Context) error {
	b := builtOf()
	v := versionJSON{
		Version: version(), Format: chain.FormatVersion, Commit: b.commit, Time: b.time, Modified: b.modified,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	img, err := qemu.Find(ctx, "qemu-img")
	if err == nil {
		v.QEMU = &foundJSON{img.Path, img.Version.String()}
	}
	if a.json {
		return a.printJSON(v)
	}
	w := &checkedWriter{w: a.out}
	w.printf("imgbackup version %s\n", v.Version)
	if v.Commit != "" {
		changed := ""
		if v.Modified {
			changed = ", with changes"
		}
		w.printf("commit %s of %s%s\n", v.Commit, v.Time, changed)
	}
	w.printf("%s %s, repositories of format %d\n", v.Go, v.Platform, v.Format)
	if err != nil {
		w.printf("qemu-img: %v\n", err)
	} else {
		w.printf("%s, %s\n", img.Says, img.Path)
	}
	return w.err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the program's version",
		Long:        "version prints the program's version, the commit that it was made of, Go's version, and which qemu-img is\nthere; --version does so, too.",
		Annotations: exits(),
		Example:     "  imgbackup version --json",
		Args:        takes(cobra.NoArgs, "no arguments"),
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.printVersion(cmd.Context()) },
	}
}

// addVersion gives the program the flag that does what the command does.
func (a *app) addVersion(root *cobra.Command) {
	asked := root.Flags().Bool("version", false, "print the program's version")
	help := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *asked {
			return a.printVersion(cmd.Context())
		}
		return help(cmd, args)
	}
}

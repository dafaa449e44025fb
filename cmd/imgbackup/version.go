// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
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

// versionJSON is what version --json prints.
type versionJSON struct {
	Version string `json:"version"`
	Format  int    `json:"format"` // of repositories: the newest that is read
}

func (a *app) printVersion() error {
	if a.json {
		return a.printJSON(versionJSON{version(), chain.FormatVersion})
	}
	_, err := fmt.Fprintf(a.out, "imgbackup version %s\n", version())
	return err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the program's version",
		Long:        "version prints the version of the program; --version does so, too.",
		Annotations: exits(),
		Example:     "  imgbackup version --json",
		Args:        takes(cobra.NoArgs, "no arguments"),
		RunE:        func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

// addVersion gives the program the flag that does what the command does.
func (a *app) addVersion(root *cobra.Command) {
	asked := root.Flags().Bool("version", false, "print the program's version")
	help := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *asked {
			return a.printVersion()
		}
		return help(cmd, args)
	}
}

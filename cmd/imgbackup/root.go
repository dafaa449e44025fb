// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
	"github.com/imgbackup/imgbackup/objstore/open"
)

// app is what every command shares.
type app struct {
	program
	repoFlag   string
	configFlag string
	// getenv is the environment of the repository, where the configuration has one for
	// it; nil: os.Getenv.
	getenv     func(string) string
	hostIDFlag string
	// connections is how many requests a bucket is asked at once; 0: the default.
	connections int
	json        bool
	quiet       bool
	verbose     bool         // notes also of how it runs
	cached      *cachedRepo  // nil: no repository was opened with the cache
	ahead       *cache.Ahead // a listing that was begun before the repository was open; nil: none
	progress    string       // how it is shown
	unusual     habit.Limits
	keyFlags    keyFlags
	opened      *opened
	reach       *reach
	interrupted <-chan struct{} // closed once the run is to end
	// beside is set of a copy that works on one of several domains at once.
	beside *beside
	// second: this is one repository of several, of which the identity may belong to another.
	second bool
}

func newRoot(p program) *cobra.Command {
	a := &app{program: p, opened: &opened{}, reach: &reach{}}
	root := &cobra.Command{
		Use:   "imgbackup",
		Short: "Back up the disks of shut-down QEMU/KVM virtual machines",
		Long: `imgbackup takes the disks of a shut-down virtual machine into a repository: all of them once, then only
what changed, as QEMU's own dirty bitmaps tell. Any checkpoint can be restored, bit for bit. It needs no
libvirtd and no running QEMU. The repository is that of --repo, or IMGBACKUP_REPO. Results go to stdout,
notes and progress to stderr.`,
		Annotations: exits(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup init -r /backup
  imgbackup backup -r /backup web --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup list -r /backup web
  imgbackup restore -r /backup web --output /restored`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	group(root)
	a.addVersion(root)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		a.interrupted = cmd.Context().Done()
		if f := cmd.Flags().Lookup("repo"); f != nil && f.Changed && f.Value.String() == "" {
			return usage.Errorf("--repo: the place is empty, as by a variable that is not set")
		}
		a.noteMemory(cmd)
		a.noteKernel()
		if confine.Off() {
			a.note("this process, qemu-img and qemu-nbd run unconfined: IMGBACKUP_CONFINE=off")
		}
		if err := a.checkConnections(cmd); err != nil {
			return err
		}
		if cmd.Annotations[resolvesItself] != "" {
			return nil
		}
		return a.resolve()
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&a.repoFlag, "repo", "r", "", "repository: a folder's `PATH`, s3://BUCKET/PREFIX, or a configured name")
	flags.StringVar(&a.configFlag, "config", "", "the `FILE` of the configuration, else "+defaultConfig)
	flags.StringVar(&a.hostIDFlag, "host-id", "", "this host is known by `FILE|ID`, a word or a path with a slash")
	flags.IntVar(&a.connections, "connections", open.DefaultConnections, fmt.Sprintf("ask a bucket for at most `N` things at once, 1 to %d", open.MaxConnections))
	flags.StringArrayVar(&a.keyFlags.identities, "identity", nil, "the `FILE` with the key of an encrypted repository; may be repeated")
	flags.StringVar(&a.keyFlags.passphraseFile, "passphrase-file", "", "the first line of `FILE` is the repository's passphrase, or the identity's")
	flags.BoolVar(&a.json, "json", false, "write results as JSON, for programs")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no notes on stderr")
	flags.BoolVar(&a.verbose, "verbose", false, "notes also of how it runs, as what of it the kernel can't confine")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(showHelp)
	root.AddCommand(
		a.initCommand(),
		a.keyCommand(),
		a.configCommand(),
		a.runCommand(),
		a.runsCommand(),
		a.statusCommand(),
		a.systemdCommand(),
		a.inspectCommand(),
		a.bitmapCommand(),
		a.backupCommand(),
		a.importCommand(),
		a.listCommand(),
		a.showCommand(),
		a.restoreCommand(),
		a.recoverCommand(),
		a.serveCommand(),
		a.mountCommand(),
		a.filesCommand(),
		a.checkCommand(),
		a.reportCommand(),
		a.drillCommand(),
		a.drillsCommand(),
		a.repairCommand(),
		a.copyCommand(),
		a.pruneCommand(),
		a.leasesCommand(),
		a.forgetCommand(),
		a.tagCommand(),
		a.lockCommand(),
		a.checkpointCommand(),
		a.changesCommand(),
		a.exportCommand(),
		a.doctorCommand(),
		a.versionCommand(),
		a.manCommand(root),
	)
	a.addCompletion(root)
	root.SetOut(p.out) // where the completion commands write to
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			helpForKnown(c)
		}
	}
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		group(completion)
		completion.Example = "  imgbackup completion bash >/etc/bash_completion.d/imgbackup"
	}
	return root
}

// noteMemory tells before work that takes long, which such commands show, or serves
// clients, that it would be faster with more memory.
func (a *app) noteMemory(cmd *cobra.Command) {
	long := cmd.Flags().Lookup("progress") != nil || cmd.Flags().Lookup("socket") != nil
	switch {
	case !long || !a.memory.Limited():
	case a.memory.Bytes() < memory.Least:
		a.note(fmt.Sprintf("memory is limited to %s, less than the %d MiB that all of it was tried with: it is slow, and the kernel may end it", a.memory, memory.Least>>20))
	default:
		a.note(fmt.Sprintf("memory is limited to %s: slower", a.memory))
	}
}

// helpForKnown lets help refuse what is no command.
func helpForKnown(help *cobra.Command) {
	show := help.Run
	help.Run = nil
	help.RunE = func(cmd *cobra.Command, args []string) error {
		of := cmd.Root()
		for _, word := range args {
			found := slices.IndexFunc(of.Commands(), func(c *cobra.Command) bool { return c.Name() == word || c.HasAlias(word) })
			if found < 0 {
				return unknownCommand(of, word)
			}
			of = of.Commands()[found]
		}
		show(cmd, args)
		return nil
	}
}

// checkConnections takes --connections, which is a bound only where it was given.
func (a *app) checkConnections(cmd *cobra.Command) error {
	f := cmd.Flags().Lookup("connections")
	switch {
	case f == nil || !f.Changed:
		a.connections = 0
	case a.connections < 1 || a.connections > open.MaxConnections:
		return usage.Errorf("--connections is 1 to %d, not %d", open.MaxConnections, a.connections)
	}
	return nil
}

// store opens the place that --repo names.
func (a *app) store(o open.Options) (objstore.Store, error) {
	store, err := a.openStore(o)
	if err == nil && a.wrap != nil {
		store = a.wrap(store)
	}
	return store, err
}

// place is where the repository is, or empty.
func (a *app) place() string {
	// Not the flag's default, which help and man pages would show.
	if a.repoFlag == "" {
		return os.Getenv("IMGBACKUP_REPO")
	}
	return a.repoFlag
}

func (a *app) openStore(o open.Options) (objstore.Store, error) {
	a.repoFlag = a.place()
	if a.repoFlag == "" {
		return nil, usage.Errorf("no repository: give --repo PATH or set IMGBACKUP_REPO")
	}
	o.Retry, o.Note, o.Connections = a.retry, a.note, a.connections
	o.Retry.Notify, o.Getenv = a.retryNote, a.getenv
	store, err := open.Open(a.repoFlag, o)
	if err != nil {
		return nil, err // and not a nil store of some type
	}
	if a.reach != nil && objstore.Connections(store) > 0 {
		a.reach.add(a.getenv)
	}
	return store, nil
}

// retryNote tells of an outage of the store, once it lasts.
func (a *app) retryNote(err error, wait time.Duration) {
	a.events.tell(event{Event: "retry", Error: err.Error(), Wait: wait.Seconds()})
	if wait >= 2*time.Second {
		a.tellNote(fmt.Sprintf("trying again in %s: %v", wait.Round(time.Second), err))
	}
}

// note tells a person something beside the result.
func (a *app) note(msg string) {
	a.events.tell(event{Event: "note", Message: msg})
	a.tellNote(msg)
}

func (a *app) tellNote(msg string) {
	if a.quiet {
		return
	}
	if a.beside != nil {
		msg = a.beside.domain + ": " + msg
	}
	a.tell(slog.LevelInfo, "note: "+msg)
}

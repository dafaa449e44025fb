// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/retention"
)

// completer returns what a word that a person is typing may become. args are the
// arguments before it.
type completer func(cmd *cobra.Command, args []string, typed string) []cobra.Completion

// fn is the completer as cobra wants it: what it does not know is no file's name.
func (c completer) fn(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all := slices.DeleteFunc(c(cmd, args, typed), func(s string) bool { return !strings.HasPrefix(s, typed) })
	return all, cobra.ShellCompDirectiveNoFileComp
}

// completes lets flags of cmd be completed, each by its own.
func completes(cmd *cobra.Command, flags map[string]completer) {
	for name, c := range flags {
		if cmd.Flags().Lookup(name) == nil {
			continue
		}
		if err := cmd.RegisterFlagCompletionFunc(name, c.fn); err != nil {
			panic(err) // the flag is there, and has no other
		}
	}
}

// words is the completer of a few words.
func words(all ...string) completer {
	return func(*cobra.Command, []string, string) []cobra.Completion { return slices.Clone(all) }
}

// completionPatience is how long a store is waited for while a person is typing.
const completionPatience = 2 * time.Second

// completionRepo opens the repository; nil where it can't be.
func (a *app) completionRepo(cmd *cobra.Command) *chain.Repository {
	a.quiet, a.retry.Patience = true, completionPatience
	repo, err := a.openCached(cmd.Context())
	if err != nil {
		return nil // a person who types is not told
	}
	return repo
}

// domains completes a domain's name, or several.
func (a *app) domains(cmd *cobra.Command, _ []string, _ string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil {
		return nil
	}
	all, err := repo.Domains(cmd.Context())
	if err != nil {
		return nil
	}
	return all
}

// backedUp completes the name of a domain that is to be backed up: one that the repository
// has, or a VM of another manager's on this host.
func (a *app) backedUp(cmd *cobra.Command, args []string, typed string) []cobra.Completion {
	all := a.domains(cmd, args, typed)
	for _, of := range manager.All() {
		if vms, err := (manager.Places{Root: a.managersRoot}).Domains(of); err == nil { // who types is not told
			all = append(all, vms...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkpoints completes the name of a checkpoint of the domain that is the first
// argument.
func (a *app) checkpoints(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil || len(args) == 0 {
		return nil
	}
	all, err := repo.Checkpoints(cmd.Context(), args[0])
	if err != nil || len(all) == 0 {
		return nil
	}
	return append(all, request.Latest)
}

// domainThenCheckpoints completes a domain's name, and behind it those of its
// checkpoints, or with rules of more domains.
func (a *app) domainThenCheckpoints(cmd *cobra.Command, args []string, typed string) []cobra.Completion {
	rules := false
	cmd.Flags().Visit(func(f *pflag.Flag) { rules = rules || strings.HasPrefix(f.Name, "keep-") })
	if len(args) == 0 || rules {
		return a.domains(cmd, args, typed)
	}
	return a.checkpoints(cmd, args, typed)
}

// tags completes a tag of the checkpoint that is named.
func (a *app) tags(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil || len(args) < 2 {
		return nil
	}
	m, err := find(cmd.Context(), repo, args[0], args[1], anyKind)
	if err != nil {
		return nil
	}
	return m.Tags
}

// allTags completes a tag of any checkpoint of the domains that are named.
func (a *app) allTags(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	return a.ofAll(cmd, args, func(m *chain.Manifest) []string { return m.Tags }, retention.KeepTag)
}

// hosts are those that made checkpoints.
func (a *app) hosts(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	return a.ofAll(cmd, args, func(m *chain.Manifest) []string { return []string{m.Host.Name} })
}

// ofAll is what all checkpoints of some domains have, or of all domains, sorted, with more.
func (a *app) ofAll(cmd *cobra.Command, domains []string, what func(*chain.Manifest) []string, more ...string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil {
		return nil
	}
	if len(domains) == 0 {
		domains = a.domains(cmd, nil, "")
	}
	all := more
	for _, domain := range domains {
		ms, _, err := repo.Manifests(cmd.Context(), domain)
		if err != nil {
			return nil
		}
		for _, m := range ms {
			all = append(all, what(m)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// bitmapNames completes an image's path, and then the names of its bitmaps.
func bitmapNames(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var all []cobra.Completion
	err := qcow2.WithTopLayer(args[0], func(l *qcow2.Layer) error {
		for _, b := range l.Bitmaps {
			if strings.HasPrefix(b.Name, typed) && !slices.Contains(args[1:], b.Name) {
				all = append(all, b.Name)
			}
		}
		return nil
	})
	if err != nil {
		all = nil // a person who types is not told
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// disks completes the name of a disk of the checkpoint that the command line names,
// or of the newest.
func (a *app) disks(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil || len(args) == 0 {
		return nil
	}
	name, err := cmd.Flags().GetString("checkpoint")
	if err != nil {
		return nil
	}
	if len(args) > 1 && !strings.HasPrefix(args[1], "/") { // which is a guest's path
		name = args[1]
	}
	m, err := find(cmd.Context(), repo, args[0], name, withData)
	if err != nil {
		return nil
	}
	var all []string
	for i := range m.Disks {
		all = append(all, m.Disks[i].Name)
	}
	return all
}

// jobNames completes the name of a job that is not named yet.
func (a *app) jobNames(_ *cobra.Command, args []string, _ string) []cobra.Completion {
	path, _ := a.configPath()
	c, _, err := config.Load(path)
	if err != nil {
		return nil // a person who types is not told
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.Jobs)), func(name string) bool { return slices.Contains(args, name) })
}

// positions completes each argument by a completer of its own, or by files' names
// where that is nil; there are no more arguments than these.
func positions(each ...completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(each) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if each[len(args)] == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return each[len(args)].fn(cmd, args, typed)
	}
}

// addCompletion lets the arguments and flags of all commands be completed.
func (a *app) addCompletion(root *cobra.Command) {
	arguments := map[string][]completer{
		"backup": {a.backedUp}, "export": {a.backedUp}, "list": {a.domains}, "check": {a.domains}, "drills": {a.domains},
		"restore": {a.domains, a.checkpoints}, "recover": {a.domains, a.checkpoints},
		"serve": {a.domains, a.checkpoints}, "show": {a.domains, a.checkpoints}, "tag": {a.domains, a.checkpoints},
		"changes":           {a.domains, a.checkpoints, a.checkpoints},
		"checkpoint create": {a.backedUp}, "checkpoint list": {a.domains}, "checkpoint redefine": {a.domains, nil},
		"checkpoint delete": {a.domains, a.checkpoints}, "checkpoint dumpxml": {a.domains, a.checkpoints},
	}
	arguments["files diff"], arguments["files shell"] = []completer{a.domains, a.checkpoints, a.checkpoints}, []completer{a.domains}
	for _, c := range filesCommands() {
		arguments["files "+c.name] = []completer{a.domains}
	}
	flags := map[string]map[string]completer{
		"": { // of every command that has them
			"progress": words(progressAuto, progressBar, progressPlain, progressJSON, progressNone),
		},
		"backup": {
			"mode": words("auto", "full", "incremental"), "compression": words("none", "fastest", "default", "better", "best"),
			"incremental": a.checkpoints,
		},
		"export":             {"incremental": a.checkpoints},
		"restore":            {"format": words("raw", "qcow2", "vmdk", "vhdx", "vdi", "qed"), "checkpoint": a.checkpoints, "disk": a.disks},
		"serve":              {"checkpoint": a.checkpoints, "changes-since": a.checkpoints, "disk": a.disks},
		"show":               {"checkpoint": a.checkpoints},
		"tag":                {"checkpoint": a.checkpoints, "remove": a.tags},
		"forget":             {"checkpoint": a.checkpoints, "keep-tag": a.allTags},
		"list":               {"tag": a.allTags, "host": a.hosts},
		"changes":            {"checkpoint": a.checkpoints},
		"checkpoint delete":  {"checkpoint": a.checkpoints},
		"checkpoint dumpxml": {"checkpoint": a.checkpoints},
		"inspect":            {"format": words(request.Formats()...)},
	}
	for _, c := range filesCommands() {
		flags["files "+c.name] = map[string]completer{"checkpoint": a.checkpoints, "disk": a.disks}
	}
	flags["files shell"] = flags["files ls"]
	flags["files diff"] = map[string]completer{"content": words("needed", "all", "none")}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		if each, ok := arguments[name]; ok {
			cmd.ValidArgsFunction = positions(each...)
		}
		completes(cmd, flags[""])
		completes(cmd, flags[name])
		for _, c := range cmd.Commands() {
			visit(c)
		}
	}
	visit(root)
	if cmd, _, err := root.Find([]string{"bitmap", "remove"}); err == nil {
		cmd.ValidArgsFunction = bitmapNames
	}
	for name, c := range map[string]completer{
		"copy": a.domains, "forget": a.domainThenCheckpoints, "drill": a.domains, "report": a.domains,
		"run": a.jobNames, "runs": a.jobNames, "status": a.jobNames,
	} { // any number of them
		if cmd, _, err := root.Find([]string{name}); err == nil {
			cmd.ValidArgsFunction = c.fn
		}
	}
}

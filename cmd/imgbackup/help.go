// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Annotations of commands and flags: what their help is made of.
const (
	exitsKey   = "exits"   // the exit statuses that a command has besides those of all
	meansKey   = "means"   // what a command's exit statuses mean, where that is not what all others mean by them
	manualKey  = "manual"  // text that only the man page has
	sectionKey = "section" // of flags: the title, and the place under it
)

// exits are the annotations of a command that has these exit statuses, too.
func exits(codes ...int) map[string]string {
	var all []string
	for _, c := range codes {
		all = append(all, strconv.Itoa(c))
	}
	return map[string]string{exitsKey: strings.Join(all, ",")}
}

// ownExits are the annotations of a command whose exit statuses mean something else than
// other commands'; each line is a status and what it means.
func ownExits(lines ...string) map[string]string {
	return map[string]string{meansKey: "    " + strings.Join(lines, "\n    ")}
}

// exitTableOf explains a command's exit statuses.
func exitTableOf(cmd *cobra.Command) string {
	if own := cmd.Annotations[meansKey]; own != "" {
		return own
	}
	return exitTable(exitsOf(cmd))
}

// exitsOf is what exits has noted.
func exitsOf(cmd *cobra.Command) []int {
	var codes []int
	for _, text := range strings.Split(cmd.Annotations[exitsKey], ",") {
		if c, err := strconv.Atoi(text); err == nil {
			codes = append(codes, c)
		}
	}
	return codes
}

// addManual gives a command's man page what its help is too short for.
func addManual(cmd *cobra.Command, text string) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	before := cmd.Annotations[manualKey]
	if before != "" {
		before += "\n\n"
	}
	cmd.Annotations[manualKey] = before + strings.TrimSpace(text)
}

// section puts flags under a title, in the order in which they are named, behind
// those that are there. Where some flags have a title, those that have none are only
// named: they are for few, and the man page explains them.
func section(f *pflag.FlagSet, title string, names ...string) {
	there := 0
	f.VisitAll(func(f *pflag.Flag) {
		if at := f.Annotations[sectionKey]; len(at) > 0 && at[0] == title {
			there++
		}
	})
	for i, name := range names {
		if err := f.SetAnnotation(name, sectionKey, []string{title, strconv.Itoa(there + i)}); err != nil {
			panic(err) // there is no such flag
		}
	}
}

// The lines of help are as wide as the terminal, within bounds.
const (
	helpWidth    = 100
	minHelpWidth = 60
)

// showHelp writes a command's help: it fits a screen or two, and the rest is in the
// man pages.
func showHelp(cmd *cobra.Command, _ []string) {
	w := &checkedWriter{w: cmd.OutOrStdout()}
	w.printf("%s\n\nUsage:\n  %s\n", strings.TrimSpace(cmd.Long), useLine(cmd))
	if subs := commandLines(cmd); subs != "" {
		w.printf("\nCommands:\n%s", subs)
	}
	if cmd.Example != "" {
		w.printf("\nExamples:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	w.printf("%s", flagLines(cmd.LocalFlags(), widthOf(cmd.OutOrStdout())))
	if cmd.HasParent() {
		w.printf("\nFlags of every command, as --repo and --json: imgbackup --help. More: man %s\n", strings.ReplaceAll(cmd.CommandPath(), " ", "-"))
	}
	table, more := exitTableOf(cmd), ""
	if !cmd.HasParent() {
		table, more = exitTable([]int{exitInterrupted}), " (each command's help has its others)"
	}
	w.printf("\nExit status%s:\n%s\n", more, table)
}

// useLine is how a command is called.
func useLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND [flags]"
	}
	return cmd.UseLine()
}

func widthOf(out io.Writer) int {
	n := terminalWidth(out)
	if n == 0 {
		return helpWidth
	}
	return max(minHelpWidth, min(n, helpWidth))
}

func commandLines(cmd *cobra.Command) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() || c.Name() == "help" {
			fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

// flagLine is a flag as its line of the help shows it.
type flagLine struct {
	section string // empty: none
	place   int
	name    string // with what it takes
	usage   string
}

// flagLines describes flags, section by section.
func flagLines(set *pflag.FlagSet, width int) string {
	var lines []flagLine
	names := 0
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		l := newFlagLine(f)
		lines, names = append(lines, l), max(names, len(l.name))
	})
	names = min(names, width/3)
	var b strings.Builder
	if !slices.ContainsFunc(lines, func(l flagLine) bool { return l.section != "" && l.section != howItRuns }) {
		for i, l := range lines {
			if i == 0 {
				b.WriteString("\nFlags:\n")
			}
			b.WriteString(l.wrapped(names, width))
		}
		return b.String()
	}
	slices.SortStableFunc(lines, func(a, b flagLine) int { return cmp.Compare(a.place, b.place) })
	for _, title := range sectionOrder() {
		begun := false
		for _, l := range lines {
			if l.section != title {
				continue
			}
			if !begun {
				fmt.Fprintf(&b, "\n%s:\n", title)
			}
			begun = true
			b.WriteString(l.wrapped(names, width))
		}
	}
	var rest []string
	for _, l := range lines {
		if l.section == "" {
			rest = append(rest, strings.TrimSpace(l.name))
		}
	}
	if len(rest) > 0 {
		more := flagLine{usage: "Also, explained in the man page: " + strings.Join(rest, ", ")}
		b.WriteString("\n" + strings.TrimLeft(more.wrapped(0, width), " "))
	}
	return b.String()
}

// The titles that flags can be under.
const (
	whichDisks   = "Disks"
	whatIsDone   = "What is done"
	byXML        = "As libvirt's XML says"
	toFiles      = "To files instead of the repository"
	howItRuns    = "How it runs"
	whereTo      = "Where to"
	whereHeard   = "Where it is offered"
	whatStays    = "What stays"
	whatIsCopied = "What is copied, instead of everything"
)

func sectionOrder() []string {
	return []string{whichDisks, whereTo, whatIsDone, whatStays, whatIsCopied, byXML, toFiles, whereHeard, howItRuns}
}

func newFlagLine(f *pflag.Flag) flagLine {
	takes, usage := pflag.UnquoteUsage(f)
	l := flagLine{place: 1 << 20, name: "    --" + f.Name, usage: strings.ReplaceAll(usage, "\n", " ")}
	if f.Shorthand != "" {
		l.name = "-" + f.Shorthand + ", --" + f.Name
	}
	if takes != "" && f.Value.Type() != "bool" {
		l.name += " " + takes
	}
	if !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
		l.usage += " (default: " + f.DefValue + ")"
	}
	if at := f.Annotations[sectionKey]; len(at) == 2 {
		l.section = at[0]
		if n, err := strconv.Atoi(at[1]); err == nil {
			l.place = n
		}
	}
	return l
}

// wrapped is the line with its usage in a column of its own behind names letters.
func (l *flagLine) wrapped(names, width int) string {
	var b strings.Builder
	indent := 2 + names + 2
	fmt.Fprintf(&b, "  %-*s  ", names, l.name)
	if len(l.name) > names {
		fmt.Fprintf(&b, "\n%*s", indent, "")
	}
	at := indent
	for i, word := range strings.Fields(l.usage) {
		n := len([]rune(word))
		switch {
		case i > 0 && at+1+n > width:
			fmt.Fprintf(&b, "\n%*s", indent, "")
			at = indent
		case i > 0:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	b.WriteByte('\n')
	return b.String()
}

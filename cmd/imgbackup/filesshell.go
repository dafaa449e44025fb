// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// filesShell is a shell in a guest.
type filesShell struct {
	a    *app
	look *files.Look
	at   string // the folder that paths begin in

	begun guestfs.Place // where --disk and --volume have it
}

func (a *app) filesShellCommand() *cobra.Command {
	var r looking
	cmd := &cobra.Command{
		Use:        "shell DOMAIN",
		Short:      "Look around in a guest: one appliance for many commands",
		SuggestFor: []string{"sh", "open", "explore"},
		Long: `shell reads commands from stdin, one a line, and keeps one appliance for all of them: ls, stat, cat, find, get, tar
and volumes, without DOMAIN and --checkpoint; use, to look at another volume; cd and pwd; help, and exit. Words are parted by spaces, and quoted as a
shell does: 'a b', "a b", a\ b. At a terminal it goes on after an error; else the first one ends it, with its exit
status.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup files shell web --checkpoint monday
  printf 'ls /etc\nget /etc/nginx --output out\n' | imgbackup files shell web`,
		Args: takes(cobra.ExactArgs(1), "a DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.lookInto(cmd, args[0], &r, func(ctx context.Context, l *files.Look) error {
				s := &filesShell{a: a, look: l, at: "/", begun: r.place}
				return s.run(ctx)
			})
		},
	}
	r.add(cmd.Flags())
	return cmd
}

// maxLine bounds a command, bytes.
const maxLine = 64 << 10

// errLeave ends a shell as its user wants it.
var errLeave = errors.New("exit")

// run does what lines say, until there are no more.
func (s *filesShell) run(ctx context.Context) error {
	f, ok := s.a.in.(*os.File)
	person := ok && term.IsTerminal(int(f.Fd()))
	lines := readLines(s.a.in)
	for {
		if person {
			fmt.Fprintf(s.a.err, "%s@%s:%s> ", s.look.Manifest.Domain, s.look.Manifest.Checkpoint, escaped(s.at))
		}
		var l line
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case l = <-lines:
		}
		if l.err != nil {
			if errors.Is(l.err, io.EOF) {
				return nil
			}
			return l.err
		}
		err := s.do(ctx, l.text)
		switch {
		case errors.Is(err, errLeave):
			return nil
		case err == nil:
		case !person || ctx.Err() != nil || errors.Is(err, guestfs.ErrEnded):
			return err
		default:
			fmt.Fprintf(s.a.err, "imgbackup: %s\n", oneLine(explain(ctx, err)))
		}
	}
}

// line is one of the input; an error ends it.
type line struct {
	text string
	err  error
}

// readLines reads lines until the input ends, or nobody takes them any more.
func readLines(in io.Reader) <-chan line {
	lines := make(chan line)
	go func() { // it stays where a reader waits that nothing wakes; then the program ends
		scan := bufio.NewScanner(in)
		scan.Buffer(nil, maxLine)
		for scan.Scan() {
			lines <- line{text: scan.Text()}
		}
		err := scan.Err()
		if err == nil {
			err = io.EOF
		}
		lines <- line{err: err}
	}()
	return lines
}

// do does what one line says.
func (s *filesShell) do(ctx context.Context, text string) error {
	words, err := splitWords(text)
	if err != nil || len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return err
	}
	cmd := s.commands()
	cmd.SetArgs(words)
	_, err = cmd.ExecuteContextC(ctx)
	return err
}

// commands are what can be said; flags are only of one line.
func (s *filesShell) commands() *cobra.Command {
	root := group(&cobra.Command{Use: "", Long: "Commands of a shell in a guest; COMMAND --help explains one.", SilenceErrors: true, SilenceUsage: true})
	root.SetOut(s.a.out)
	root.SetErr(s.a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(showHelp)
	root.CompletionOptions.DisableDefaultCmd = true
	for _, c := range filesCommands() {
		root.AddCommand(s.a.fileCommand(c, s))
	}
	root.AddCommand(
		s.useCommand(),
		&cobra.Command{Use: "cd [PATH]", Short: "Go to a folder", Args: takes(cobra.MaximumNArgs(1), "perhaps a PATH"), RunE: s.cd},
		&cobra.Command{Use: "pwd", Short: "Tell which folder that is", Args: takes(cobra.NoArgs, "nothing"), RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(s.a.out, escaped(s.at))
			return err
		}},
		&cobra.Command{Use: "exit", Aliases: []string{"quit"}, Short: "Leave", RunE: func(*cobra.Command, []string) error { return errLeave }},
	)
	return root
}

// useCommand lets all commands after it look at something else.
func (s *filesShell) useCommand() *cobra.Command {
	disk := ""
	cmd := &cobra.Command{
		Use: "use [VOLUME]", Short: "Look at another volume, from its / on",
		Long: `use looks at this VOLUME from now on, as /dev/sda1, or at the file systems on a disk; without any, at what the shell
began with. volumes lists them.`,
		Args: takes(cobra.MaximumNArgs(1), "perhaps a VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			to := s.begun
			if len(args) > 0 || disk != "" {
				to = guestfs.Place{Disk: disk}
			}
			if len(args) > 0 {
				to.Device = args[0]
				if err := guestfs.CheckDevice(guestfs.Base(to.Device)); err != nil {
					return usage.Wrap(err)
				}
			}
			if _, ok := s.look.Manifest.Disk(disk); disk != "" && !ok {
				return usage.Errorf("checkpoint %s has no disk %.80q", s.look.Manifest.Checkpoint, disk)
			}
			err := s.look.Use(cmd.Context(), to)
			if err == nil || errors.As(err, new(*files.BesideError)) {
				s.at = "/"
			}
			return err
		},
	}
	cmd.Flags().StringVar(&disk, "disk", "", "the file systems on this disk `TARGET`")
	return cmd
}

func (s *filesShell) cd(cmd *cobra.Command, args []string) error {
	to := "/"
	if len(args) > 0 {
		to = absolute(s.at, args)[0]
	}
	e, err := s.look.Stat(cmd.Context(), to, true)
	if err != nil {
		return err
	}
	if !e.Dir() {
		return fmt.Errorf("%s is no folder", escaped(to))
	}
	s.at = to
	return nil
}

// splitWords parts a line into words, as a shell does.
func splitWords(text string) (words []string, err error) {
	var word strings.Builder
	begun, quote := false, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'':
			if i++; i == len(text) {
				return nil, usage.Errorf(`a \ ends the line`)
			}
			if quote == '"' && text[i] != '"' && text[i] != '\\' {
				word.WriteByte('\\')
			}
			word.WriteByte(text[i])
			begun = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\r':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if quote != 0 {
		return nil, usage.Errorf("a quote %c has no end", quote)
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

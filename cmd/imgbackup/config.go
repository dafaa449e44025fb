// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/jobs"
)

func (a *app) configCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "config",
		Short: "Show, check and explain the configuration",
		Long: `config is about the file that says what is backed up to where and when, for run, status and systemd, and
which names --repo knows: /etc/imgbackup/config.yaml, or that of --config or IMGBACKUP_CONFIG, and *.yaml in
the folder conf.d beside it. imgbackup-config(5) explains every key.`,
		Annotations: exits(),
		Example:     "  imgbackup config example >/etc/imgbackup/config.yaml\n  imgbackup config check\n  imgbackup config show",
	})
	write := func(use, short, long string, what func() ([]byte, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Long: long, Annotations: exits(), Example: "  imgbackup config " + use,
			Args: takes(cobra.NoArgs, "no arguments"),
			RunE: func(*cobra.Command, []string) error {
				text, err := what()
				if err != nil {
					return err
				}
				_, err = a.out.Write(text)
				return err
			},
		}
	}
	cmd.AddCommand(
		write("example", "Print a configuration with comments",
			"example prints a configuration that is valid, with comments, to be changed to what is wanted.",
			func() ([]byte, error) { return config.Example(), nil }),
		write("schema", "Print the JSON Schema, for editors",
			"schema prints the JSON Schema of the configuration: editors complete and check keys by it.",
			func() ([]byte, error) { return config.Schema(), nil }),
		write("show", "Print what is in force, with defaults",
			"show prints the configuration as it is read from all its files, with defaults. Secrets are not shown.",
			a.shownConfig),
		a.configCheckCommand(),
	)
	return cmd
}

func (a *app) shownConfig() ([]byte, error) {
	c, err := a.configuration()
	if err != nil {
		return nil, err
	}
	if a.json {
		v, err := c.Plain()
		return nil, errors.Join(err, a.printJSON(v))
	}
	return c.YAML()
}

// configCheckJSON is what config check --json prints.
type configCheckJSON struct {
	File     string        `json:"file"`
	Valid    bool          `json:"valid"`
	Errors   []problemJSON `json:"errors"`
	Warnings []problemJSON `json:"warnings"`
}

type problemJSON struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

func viewProblems(ps config.Problems) []problemJSON {
	out := []problemJSON{}
	for _, p := range ps {
		out = append(out, problemJSON{p.File, p.Line, p.Text})
	}
	return out
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the configuration, line by line",
		Long: `check reads the configuration as run does, and tells all that is wrong with it, with files and lines; the
exit status is 2 then. Warnings are about what is valid and perhaps not meant, as a domain that is not defined
on this host. It opens no repository.`,
		Annotations: exits(),
		Example:     "  imgbackup config check\n  imgbackup config check --config ./config.yaml",
		Args:        takes(cobra.NoArgs, "no arguments"),
		RunE:        func(*cobra.Command, []string) error { return a.checkConfig() },
	}
}

func (a *app) checkConfig() error {
	path, _ := a.configPath()
	c, warnings, err := config.Load(path)
	var wrong config.Problems
	if err != nil && !errors.As(err, &wrong) {
		return wrongConfig(err)
	}
	if err == nil {
		missing, err := notDefined(c, path)
		if err != nil {
			return err
		}
		warnings = append(warnings, missing...)
	}
	var found error
	if len(wrong) > 0 {
		found = configWrong{fmt.Errorf("%s: %s", path, count(len(wrong), "error"))}
	}
	if a.json {
		out := configCheckJSON{path, found == nil, viewProblems(wrong), viewProblems(warnings)}
		return errors.Join(a.printJSON(out), found)
	}
	w := &checkedWriter{w: a.out}
	for _, p := range wrong {
		w.printf("error: %v\n", p)
	}
	for _, p := range warnings {
		w.printf("warning: %v\n", p)
	}
	if found == nil {
		w.printf("%s is valid\n", path)
	}
	return errors.Join(w.err, found)
}

// notDefined warns of domains of jobs that are not defined on this host, and of patterns that mean
// none: they may come later.
func notDefined(c *config.Config, path string) (all config.Problems, err error) {
	for _, name := range slices.Sorted(maps.Keys(c.Jobs)) {
		p, err := jobs.Make(c, name)
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", name, err)
		}
		say := func(text string) { all = append(all, config.Problem{File: path, Text: "jobs." + name + ": " + text}) }
		for _, t := range p.Domains {
			if t.Missing != nil {
				say(t.Missing.Error())
			}
		}
		for _, note := range p.Notes {
			say(note)
		}
	}
	return all, nil
}

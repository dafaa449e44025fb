// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/report"
)

const reportHelp = `report says whether all is well with the repository and each domain, and if not, what is wrong: good, warning
or bad, with the reasons. --html writes it as a page that one looks at, with each domain's checkpoints and
branches, where its disks change, how it grows, its drills, and what retention forgets next by the rules given
here. The page is complete in itself: it loads nothing, and works on a phone and on paper.

Only manifests are read, no data. The exit status is 0 whatever the report says.`

const reportManual = `--html PATH writes one page to a file, or, if PATH is a folder or ends with a slash, a page for each
domain with an index.html and report.json. What stands there is replaced only if it is a report.

bad: a checkpoint has lost data, or cannot be read; the newest checkpoint is older than --max-age, or, without it,
than ten times what is usual for the domain; the newest drill failed. warning: it is older than three times what is
usual; something was unusual in the newest backup; there was no drill for 90 days, or never.

The rules (--keep-daily and so on) are those of forget: nothing is forgotten here. When a checkpoint goes is
foreseen by the usual pace of backups.`

// reportOptions are the command line of report.
type reportOptions struct {
	report.Options
	html     string
	maxAge   string
	timezone string
}

func (a *app) reportCommand() *cobra.Command {
	var o reportOptions
	cmd := &cobra.Command{
		Use:         "report [DOMAIN…]",
		Short:       "Say whether all is well; as a page, too",
		SuggestFor:  []string{"stats", "dashboard", "html"},
		Long:        reportHelp,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup report
  imgbackup report --html /var/www/backups/
  imgbackup report web --html web.html --max-age 26h --keep-daily 7 --keep-weekly 4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Domains = args
			if err := o.complete(cmd.Flags()); err != nil {
				return err
			}
			return a.report(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.html, "html", "", "write a page to this `PATH`: a file, or a folder for many pages")
	f.StringVar(&o.maxAge, "max-age", "", "the newest checkpoint of a domain may be this `TIME` old, as 26h or 8d")
	f.StringVar(&o.timezone, "timezone", "", "the `ZONE` of days and hours, as Europe/Berlin (default: the system's)")
	section(f, whatStays, addRules(f, &o.Rules)...)
	addUnusual(f, &a.unusual)
	addManual(cmd, reportManual+"\n\n"+unusualManual)
	return cmd
}

func (o *reportOptions) complete(f *pflag.FlagSet) (err error) {
	if err := notEmpty(f, "html", "max-age", "timezone"); err != nil {
		return err
	}
	for _, d := range o.Domains {
		if err := chain.CheckDomain(d); err != nil {
			return usage.Wrap(err)
		}
	}
	if o.maxAge != "" {
		if o.MaxAge, err = plan.ParseDuration(o.maxAge); err != nil {
			return usage.Errorf("--max-age %w", err)
		}
	}
	o.Zone, err = zoneFlag(f, o.timezone)
	return err
}

func (a *app) report(ctx context.Context, o reportOptions) error {
	repo, err := a.openReading(ctx)
	if err == nil {
		var s confine.Self
		if o.html != "" {
			s.Write = append(s.Write, existing(o.html), existing(filepath.Dir(o.html)))
		}
		err = a.restrict(s, reads(repo))
	}
	if err != nil {
		return err
	}
	if o.Domains, err = a.reported(ctx, repo, o.Domains); err != nil {
		return err
	}
	o.Now, o.Place, o.Tool, o.Unusual = time.Now(), a.place(), tool(), a.unusual
	r, err := report.Make(ctx, repo, o.Options)
	if err != nil {
		return err
	}
	if o.html != "" {
		if err := a.writePages(r, o.html); err != nil {
			return err
		}
	}
	if a.json {
		return r.JSON(a.out)
	}
	return a.printVerdicts(r)
}

// reported are the domains that a report is about, of which each must be there.
func (a *app) reported(ctx context.Context, repo *chain.Repository, named []string) ([]string, error) {
	all, err := repo.Domains(ctx)
	if err != nil || len(named) == 0 {
		return all, err
	}
	there := make(map[string]bool, len(all))
	for _, d := range all {
		there[d] = true
	}
	for _, d := range named {
		if !there[d] {
			return nil, noDomain(ctx, repo, d)
		}
	}
	return named, nil
}

func (a *app) printVerdicts(r *report.Report) error {
	w := &checkedWriter{w: a.out}
	w.printf("%s: %s: %d good, %d warning, %d bad; %s, %s added by them when they were made\n",
		r.Verdict.Level, count(len(r.Domains), "domain"), r.Good, r.Warning, r.Bad, count(r.Checkpoints, "checkpoint"), size(r.StoredBytes))
	if w.err == nil && len(r.Domains) > 0 {
		t := &table{out: a.out}
		t.row("DOMAIN", "VERDICT", "NEWEST", "AGE", "CHECKPOINTS", "ADDED")
		for _, d := range r.Domains {
			t.row(d.Domain, d.Verdict.Level.String(), d.Newest, (time.Duration(d.NewestAge) * time.Second).String(),
				fmt.Sprint(len(d.Checkpoints)), size(d.StoredBytes))
		}
		w.err = t.print()
	}
	for _, reason := range r.Verdict.Reasons {
		w.printf("%s: %s\n", reason.Level, oneLine(reason.Text))
	}
	return w.err
}

// writePages writes the report to a file, or a folder.
func (a *app) writePages(r *report.Report, path string) error {
	if err := a.checkOutside("--html", path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
	case strings.HasSuffix(path, "/"):
		if err := os.Mkdir(strings.TrimRight(path, "/"), 0o755); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
	default:
		return writePage(path, r.HTML)
	}
	err = r.Pages(func(name string, write func(io.Writer) error) error {
		return writePage(filepath.Join(path, name), write)
	})
	if err != nil {
		return err
	}
	return writePage(filepath.Join(path, "report.json"), r.JSON)
}

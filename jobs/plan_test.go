// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/config"
)

// planned is the plan of the job "j" of a configuration, with definitions of web1, web2,
// mail and .hidden.
func planned(t *testing.T, domains, job string) (*config.Config, *Plan) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"web1.xml", "web2.xml", "mail.xml", ".hidden.xml", "autostart.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "networks.xml"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, _, err := config.Parse("f", []byte("definitions: "+dir+"\nrepositories: {r: {place: /r}, s: {place: /s}}\ndomains: {"+domains+"}\njobs: {j: {repository: r, "+job+"}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Make(c, "j")
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

func names(p *Plan) string {
	var all []string
	for _, t := range p.Domains {
		all = append(all, t.Name)
	}
	return strings.Join(all, " ")
}

func TestPlanChooses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ domains, job, want, note string }{
		{"", `domains: ["*"]`, "mail web1 web2", ""},
		{"", `domains: [web2, "web*", mail]`, "web2 web1 mail", ""},
		{"", `domains: ["*"], except: ["web?"]`, "mail", ""},
		{"", `domains: [web1, mail], except: [web1]`, "mail", ""},
		{"db: {disks: [vda=/x]}", `domains: ["*"]`, "db mail web1 web2", ""},
		{"", `domains: ["x*", mail]`, "mail", "no domain matches x*"},
		{"", `domains: ["[mw]*1"]`, "web1", ""},
	} {
		_, p := planned(t, c.domains, c.job)
		if got, note := names(p), strings.Join(p.Notes, "; "); got != c.want || note != c.note {
			t.Errorf("%s %s: %q, %q", c.domains, c.job, got, note)
		}
	}
}

// Each key of the configuration becomes the option that it stands for.
func TestPlanArguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ domains, job, want string }{
		{"", "domains: [mail]", "backup --repo r --json mail --domain-xml DEF/mail.xml --mode auto --compression fastest"},
		{"db: {disks: ['vda=/x', 'vdb=/y'], allow_dirs: [/a], mode: full, adopt: true}", "domains: [db]",
			"backup --repo r --json db --disk vda=/x --disk vdb=/y --allow-dir /a --mode full --compression fastest --adopt"},
		{"db: {definition: /d.xml}", "domains: [db], backup: {mode: incremental, compression: best, skip_unchanged: true, audit: true, checkpoint: false, tags: [a, b]}",
			"backup --repo r --json db --domain-xml /d.xml --mode incremental --compression best --skip-unchanged --audit --no-checkpoint --tag a --tag b"},
		{"", "domains: [mail], backup: {checkpoint: true}, limits: {rate: 5M, lock_time: 90m}",
			"backup --repo r --json mail --domain-xml DEF/mail.xml --mode auto --compression fastest --limit-rate 5M --max-lock 1h30m0s"},
		{"", "domains: [mail], limits: {lock_time: 7d}", "backup --repo r --json mail --domain-xml DEF/mail.xml --mode auto --compression fastest --max-lock 168h0m0s"},
		{"", "domains: [pve:100]", "backup --repo r --json pve:100 --mode auto --compression fastest"},
		{"lima:web: {with_files: [a=/a, b=/b], mode: full}", "domains: ['lima:*'], backup: {with_files: [b=/c, c=/c]}",
			"backup --repo r --json lima:web --with-file a=/a --with-file b=/b --with-file c=/c --mode full --compression fastest"},
	} {
		conf, p := planned(t, c.domains, c.job)
		got := strings.ReplaceAll(strings.Join(p.Domains[0].Args, " "), conf.Definitions, "DEF")
		if got != c.want || p.Domains[0].Missing != nil {
			t.Errorf("%s %s:\n%s\nwant\n%s", c.domains, c.job, got, c.want)
		}
	}
	if _, p := planned(t, "", "domains: [gone, mail]"); p.Domains[0].Missing == nil || p.Domains[1].Missing != nil {
		t.Errorf("a domain that has vanished: %+v", p.Domains)
	}
	// Its name would be a flag of the steps.
	if _, p := planned(t, "--all: {disks: [vda=/x]}", "domains: ['*']"); p.Domains[0].Name != "--all" || p.Domains[0].Missing == nil || p.Domains[1].Missing != nil {
		t.Errorf("a domain named like a flag: %+v", p.Domains)
	}
}

func TestPlanSteps(t *testing.T) {
	t.Parallel()
	rules := "keep_last: 3, keep_daily: unlimited, keep_within_weekly: 1y, keep_tag: [a], timezone: UTC"
	flags := "--keep-last 3 --keep-daily unlimited --keep-within-weekly 1y --keep-tag a --timezone UTC"
	for _, c := range []struct{ domains, job, want string }{
		{"", "copy: {to: [s], newest: 2}", "copy --repo r --json --to s mail web1 --newest 2"},
		{"", "forget: {" + rules + "}, copy: {to: [s], rules: true}",
			"copy --repo r --json --to s mail web1 " + flags + "\nforget --repo r --json mail web1 " + flags},
		{"", "prune: {max_unused: 5%, repack_max: 10G}", "prune --repo r --json --max-unused 5% --repack-max 10G"},
		{"", "check: {}", "check --repo r --json"},
		{"", "check: {read_data: true}", "check --repo r --json --read-data"},
		{"", "check: {read_data: 1/7}", "check --repo r --json --read-data-subset 1/7"},
		{"", "check: {unproven_since: 30d}", "check --repo r --json --unproven-since 30d"},
		{"mail: {drill_plan: /m}", "drill: {plan: /p, skip: [boot, files], scratch: /s, sign_key: /k, checkpoint: 'random:2'}",
			"drill --repo r --json mail --checkpoint random:2 --plan /m --skip boot,files --scratch /s --sign-key /k\n" +
				"drill --repo r --json web1 --checkpoint random:2 --plan /p --skip boot,files --scratch /s --sign-key /k"},
		{"", "drill: {scratch: none}", "drill --repo r --json mail web1 --checkpoint latest --no-scratch"},
	} {
		conf, p := planned(t, c.domains, "domains: [mail, web1], "+c.job)
		var all []string
		for _, s := range p.After(conf, []string{"mail", "web1"}) {
			all = append(all, strings.Join(s.Args, " "))
		}
		if got := strings.Join(all, "\n"); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.job, got, c.want)
		}
		// Where no backup went well, nothing of domains is forgotten, copied or drilled.
		for _, s := range p.After(conf, nil) {
			if s.What != StepPrune && s.What != StepCheck {
				t.Errorf("%s: without a backup: %s", c.job, s.Args)
			}
		}
	}
}

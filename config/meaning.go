// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"maps"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/internal/suggest"
)

// checkMeaning looks whether what is said fits together.
func (l *loader) checkMeaning() {
	l.form = slices.Clone(l.problems)
	for _, name := range slices.Sorted(maps.Keys(l.all.Jobs)) {
		l.checkJob(name, l.all.Jobs[name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.all.Notices)) {
		l.checkNotice(name, l.all.Notices[name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.all.Domains)) {
		if !isName(name) {
			l.at("'"+name+"' can be no domain's name", "domains", name)
		}
		if d := l.all.Domains[name]; d.Definition != "" && len(d.Disks) > 0 {
			l.at("a domain has a definition, or disks, not both", "domains", name)
		}
	}
}

// at says that what stands at a path of keys is wrong, unless something else is wrong with a part
// of it: then what it means is not known.
func (l *loader) at(text string, path ...string) {
	file, line := l.where(path)
	for _, f := range l.files {
		if f.name == file && slices.ContainsFunc(l.form, func(p Problem) bool { return p.File == file && within(f.root, path, p.Line) }) {
			return
		}
	}
	l.problems = append(l.problems, Problem{file, line, strings.Join(path, ".") + ": " + text})
}

// where is the place of what stands at a path of keys.
func (l *loader) where(path []string) (file string, line int) {
	p := l.places[strings.Join(path[:min(2, len(path))], ".")]
	for _, f := range l.files {
		if f.name == p.file {
			return f.name, lineOf(f.root, path)
		}
	}
	return p.file, p.line
}

func (l *loader) checkJob(name string, j Job) {
	at := func(text string, path ...string) { l.at(text, append([]string{"jobs", name}, path...)...) }
	known := slices.Sorted(maps.Keys(l.all.Repositories))
	repository := func(repo string, path ...string) {
		if _, ok := l.all.Repositories[repo]; !ok {
			at("there is no repository "+repo+thereIs(repo, known), path...)
		}
	}
	repository(j.Repository, "repository")
	for _, pattern := range append(slices.Clone(j.Domains), j.Except...) {
		if _, err := path.Match(pattern, ""); err != nil || !isName(pattern) {
			at("'"+pattern+"' is no pattern", "domains")
		}
	}
	if j.Copy != nil {
		for _, to := range j.Copy.To {
			repository(to, "copy", "to")
			if to == j.Repository {
				at(to+" is the job's own repository", "copy", "to")
			}
		}
		if j.Copy.Rules && j.Forget == nil {
			at("there are no rules: the job has no forget", "copy", "rules")
		}
		if j.Copy.Rules && j.Copy.Newest != 0 {
			at("newest and rules: want one of them", "copy")
		}
	}
	if f := j.Forget; f != nil {
		if f.none() {
			at("it has no rule, as keep_daily: 7", "forget")
		}
		if _, err := time.LoadLocation(f.Timezone); err != nil {
			at("there is no time zone "+f.Timezone+", as Europe/Berlin or UTC", "forget", "timezone")
		}
	}
	if c := j.Check; c != nil && c.ReadData != "" && c.UnprovenSince != 0 {
		at("read_data and unproven_since: want one of them", "check")
	}
	l.checkShutdown(j, at)
	l.checkNoticesOf(j, at)
}

func (l *loader) checkShutdown(j Job, at func(text string, path ...string)) {
	s := j.Shutdown
	own := len(s.Stop) > 0 || len(s.Start) > 0 || len(s.Running) > 0
	switch {
	case s.By == "command" && (len(s.Stop) == 0 || len(s.Start) == 0 || len(s.Running) == 0):
		at("by command, it needs stop, start and running", "shutdown")
	case s.By != "command" && own:
		at("stop, start and running are for by: command", "shutdown")
	}
}

func (l *loader) checkNoticesOf(j Job, at func(text string, path ...string)) {
	known := slices.Sorted(maps.Keys(l.all.Notices))
	for _, n := range j.Notices {
		if _, ok := l.all.Notices[n]; !ok {
			at("there is no notice "+n+thereIs(n, known), "notices")
		}
	}
}

func (l *loader) checkNotice(name string, n Notice) {
	ways := 0
	for _, given := range []bool{n.Email != nil, n.Webhook != nil, n.Ping != nil, len(n.Command) > 0} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		l.at("want exactly one of email, webhook, ping and command", "notices", name)
	}
	if n.Email != nil && n.Email.TLS == "none" && !here(n.Email.Server) {
		l.at("mail without TLS goes only to a server on this host", "notices", name, "email", "tls")
	}
}

// isName reports whether a domain may be called so, or a pattern may mean such: files of a
// domain's state have its name.
func isName(name string) bool { return name != "" && !strings.Contains(name, "/") }

// here reports whether a server is on this host.
func here(server string) bool {
	host := server
	if h, _, err := net.SplitHostPort(server); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// none reports whether nothing would stay.
func (f *Forget) none() bool {
	numbers := []Number{f.Last, f.Hourly, f.Daily, f.Weekly, f.Monthly, f.Yearly, f.Drilled}
	times := []Within{f.Within, f.WithinHourly, f.WithinDaily, f.WithinWeekly, f.WithinMonthly, f.WithinYearly}
	return !slices.ContainsFunc(numbers, func(n Number) bool { return n != 0 }) &&
		!slices.ContainsFunc(times, func(w Within) bool { return !w.IsZero() }) && len(f.Tags) == 0
}

// thereIs ends the text about a name that is not known.
func thereIs(name string, known []string) string {
	text := suggest.DidYouMean(suggest.Near(name, known))
	if len(known) == 0 {
		return text + " (none is defined)"
	}
	return text + " (there is " + strings.Join(known, ", ") + ")"
}

var secretName = regexp.MustCompile(`(?i)secret|password|passwd|token|authorization`)

// warn looks for secrets that everybody knows who reads the file, and for what is likely
// not meant.
func (l *loader) warn() Problems {
	var all Problems
	say := func(text string, path ...string) {
		file, line := l.where(path)
		all = append(all, Problem{file, line, strings.Join(path, ".") + ": " + text})
	}
	const inline = "a secret is written into the configuration: better name a file, a credential of systemd, or a variable"
	for path, s := range l.all.Settings() {
		if s.Secret != nil && s.Secret.Value != "" || s.Secret == nil && secretName.MatchString(path[len(path)-1]) {
			say(inline, path...)
		}
	}
	for name, j := range l.all.Jobs {
		if j.Prune != nil && j.Forget == nil {
			say("nothing is forgotten by this job: there may be little to prune", "jobs", name, "prune")
		}
	}
	slices.SortFunc(all, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Text, b.Text))
	})
	return all
}

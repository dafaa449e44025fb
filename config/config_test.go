// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestExample(t *testing.T) {
	t.Parallel()
	c, warnings, err := Parse("example.yaml", Example())
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	if len(c.Jobs) != 1 || c.Jobs["nightly"].Forget.Weekly != 4 || c.Jobs["nightly"].OnRunning.What != Stop {
		t.Errorf("got %+v", c.Jobs)
	}
	shown, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := Parse("shown.yaml", shown)
	if err != nil {
		t.Fatalf("what is shown can't be read: %v\n%s", err, shown)
	}
	if !reflect.DeepEqual(again, c) {
		t.Errorf("shown and read again:\n%+v\nnot\n%+v", again, c)
	}
}

const good = `
repositories: {site1: {place: /backup}}
jobs: {nightly: {repository: site1, domains: [web]}}
`

func TestMistakes(t *testing.T) {
	t.Parallel()
	job := func(more string) string {
		return "repositories: {site1: {place: /backup}}\njobs:\n  nightly:\n    repository: site1\n    domains: [web]\n" + more
	}
	notice := func(more string) string { return "notices:\n  ops:\n" + more }
	for text, want := range map[string]string{
		"jobs: {":                            "f:1: did not find expected",
		"a: b: c":                            "f: mapping values are not allowed",
		"jobs: {}\njobs: {}":                 `mapping key "jobs" already defined`,
		"- 1":                                "f:1: want keys with values, not a list",
		"just text":                          "f:1: want keys with values, not text",
		"jobs: {}\n---\njobs: {}":            "more than one document",
		"1: x":                               "a name is no text: 1",
		"jbos: {}":                           `f:1: unknown key "jbos": did you mean jobs?`,
		"state: relative":                    `f:1: state: "relative": want an absolute path`,
		"state: [a]":                         "f:1: state: want an absolute path, not a list",
		"history: soon":                      `history: "soon": want a time, as 90s`,
		"history: 99999999w":                 "too long",
		"history: 99999999999w":              "too long",
		"repositories: {s: {}}":              "repositories.s: place is missing",
		"repositories: {s: {place: backup}}": `want an absolute path, or s3://BUCKET/PREFIX`,
		"repositories: {'a/b': {place: /a}}": `"a/b": want a name of letters`,
		"repositories: {s: {place: /a, connections: 65}}":                                "65 is too large: at most 64",
		"repositories: {s: {place: /a, connections: 0}}":                                 "0 is too small: at least 1",
		"repositories: {s: {place: /a, passphrase: word}}":                               "passphrase: want exactly one of file",
		"repositories: {s: {place: /a, passphrase: {}}}":                                 "passphrase: want exactly one of file",
		"repositories: {s: {place: /a, passphrase: {file: /a, value: b}}}":               "passphrase: want exactly one of file",
		"repositories: {s: {place: /a, passphrase: {fil: /a}}}":                          `unknown key "fil": did you mean file?`,
		"repositories: {s: {place: /a, credentials: {A-B: c}}}":                          `want a name of a variable`,
		job("    schedul: daily"):                                                        `f:6: jobs.nightly: unknown key "schedul": did you mean schedule?`,
		job("    schedule: sometimes"):                                                   `f:6: "sometimes": want hourly, daily`,
		job("    schedule: hourly 02:30"):                                                `want hourly, daily`,
		job("    schedule: 61 * * * *"):                                                  `want hourly, daily`,
		job("    schedule: daily 25:00"):                                                 `want hourly, daily`,
		job("    on_running: ignore"):                                                    "want skip, fail, shutdown, or wait",
		job("    on_running: wait"):                                                      "want skip, fail, shutdown, or wait",
		job("    backup: {with_files: [../x=/x]}"):                                       `"../x=/x": want NAME=PATH, with an absolute path`,
		job("    backup: {with_files: [x=x]}"):                                           `"x=x": want NAME=PATH, with an absolute path`,
		job("    backup: {mode: incrementel}"):                                           `"incrementel": want one of auto, full, incremental: did you mean incremental?`,
		job("    backup: {audit: maybe}"):                                                "want true or false, not text",
		job("    forget: {}"):                                                            "jobs.nightly.forget: it has no rule",
		job("    forget: {keep_daily: few}"):                                             "want a number, or unlimited",
		job("    forget: {keep_daily: -1}"):                                              "-1 is too small",
		job("    forget: {keep_within: 30x}"):                                            "want a time, as 30d",
		job("    forget: {keep_within: 1d1d}"):                                           "is no time as 30d",
		job("    forget: {keep_last: 1, timezone: Mars}"):                                "there is no time zone Mars",
		job("    copy: {to: []}"):                                                        "copy.to: it is empty",
		job("    copy: {to: [site2]}"):                                                   "there is no repository site2: did you mean site1?",
		job("    copy: {to: [site1]}"):                                                   "site1 is the job's own repository",
		job("    copy: {to: [site1], rules: true}"):                                      "the job has no forget",
		job("    check: {read_data: most}"):                                              "want true, false, 5%, 10G or N/M",
		job("    check: {read_data: true, unproven_since: 9d}"):                          "want one of them",
		job("    drill: {skip: [chunk]}"):                                                "did you mean chunks?",
		job("    shutdown: {by: command}"):                                               "needs stop, start and running",
		job("    shutdown: {stop: [a]}"):                                                 "are for by: command",
		job("    notices: [ops]"):                                                        "there is no notice ops (none is defined)",
		"repositories: {s: {place: /a}}\njobs: {j: {repository: s, domains: ['[']}}":     "is no pattern",
		"jobs: {j: {repository: s, domains: [a]}}":                                       "there is no repository s (none is defined)",
		"repositories: {s: {place: /a}}\njobs: {j: {repository: s, domains: [../../x]}}": "is no pattern",
		"domains: {../x: {}}":                                                            "'../x' can be no domain's name",
		"jobs: {j: {}}":                                                                  "repository, domains is missing",
		"domains: {d: {definition: /a, disks: [b]}}":                                     "not both",
		notice("    on: [failure]"):                                                      "f:2: notices.ops: want exactly one of email",
		notice("    command: [a]\n    ping: {url: {file: /a}}"):                          "want exactly one of email",
		notice("    email: {server: far.example, tls: none, from: a@b, to: [a@b]}"):      "mail without TLS goes only to a server on this host",
		notice("    email: {server: far.example, from: a, to: [a@b]}"):                   "want",
		"metrics: {file: /tmp/a.txt}":                                                    "an absolute path that ends with .prom",
	} {
		_, _, err := Parse("f", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
	if _, _, err := Parse("f", []byte(good)); err != nil {
		t.Error(err)
	}
}

// TestAllMistakes: all that is wrong is told at once, and nothing that only follows from it.
func TestAllMistakes(t *testing.T) {
	t.Parallel()
	const text = `repositories: {site1: {place: /backup}}
history: soon
jobs:
  nightly:
    repository: site2
    domains: [web]
    schedule: dayly 02:30
    forget:
      keep_dialy: 7
  weekly:
    repositry: site1
    domains: [web]
    check: {read_data: 5%, unproven_since: 30d}
    backup: 3
`
	_, _, err := Parse("f", []byte(text))
	var all Problems
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	want := []string{
		"f:2: history: ", "f:5: jobs.nightly.repository: there is no repository site2", `f:7: "dayly 02:30": want`, `f:9: jobs.nightly.forget: unknown key "keep_dialy"`,
		"f:10: jobs.weekly: repository is missing", `f:11: jobs.weekly: unknown key "repositry"`, "f:13: jobs.weekly.check: read_data and unproven_since", "f:14: jobs.weekly.backup: want keys",
	}
	for i, p := range all {
		if i >= len(want) || !strings.HasPrefix(p.Error(), want[i]) {
			t.Errorf("%d: %v", i, p)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d are told, want %d", len(all), len(want))
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	const text = `
repositories:
  s:
    place: s3://b/p
    passphrase: {value: hunter2}
    credentials:
      AWS_PROFILE: site
      AWS_SECRET_ACCESS_KEY: hunter2
notices:
  hook:
    webhook: {url: {value: 'https://hunter2'}, headers: {Authorization: hunter2}}
`
	c, warnings, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, w := range warnings {
		lines = append(lines, w.Line)
		if strings.Contains(w.Error(), "hunter2") {
			t.Errorf("a secret is told: %v", w)
		}
	}
	if !slices.Equal(lines, []int{5, 8, 11, 11}) {
		t.Errorf("got %v", warnings)
	}
	shown, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(shown), "hunter2"); n != 0 {
		t.Errorf("secrets are shown:\n%s", shown)
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	main := filepath.Join(dir, "config.yaml")
	write("config.yaml", "state: /s\nrepositories: {site1: {place: /backup}}\n")
	write("conf.d/10-web.yaml", "jobs: {web: {repository: site1, domains: [web]}}\n")
	write("conf.d/20-mail.yaml", "# none yet\n")
	write("conf.d/notes.txt", "no YAML: at all: {")
	c, _, err := Load(main)
	if err != nil || len(c.Jobs) != 1 || c.State != "/s" {
		t.Fatalf("%+v, %v", c, err)
	}
	write("conf.d/20-mail.yaml", "\nstate: /t\njobs: {web: {repository: site1, domains: [mail]}}\n")
	_, _, err = Load(main)
	want := []string{"20-mail.yaml:2: state: that is in " + main + ":1 already", "20-mail.yaml:3: jobs.web: that is in " + filepath.Join(dir, "conf.d/10-web.yaml") + ":1 already"}
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %s", err, w)
		}
	}
	write("conf.d/20-mail.yaml", "jobs: {mail: {repository: site9, domains: [mail]}}\n")
	if _, _, err := Load(main); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, "conf.d/20-mail.yaml")+":1: ") {
		t.Errorf("got %v", err)
	}
}

// The schema has the keys that the types have, and each says what it is.
func TestSchema(t *testing.T) {
	t.Parallel()
	var raw map[string]any
	if err := json.Unmarshal(schemaJSON, &raw); err != nil {
		t.Fatal(err)
	}
	seen := 0
	var compare func(path string, rule map[string]any, of reflect.Type)
	compare = func(path string, rule map[string]any, of reflect.Type) {
		if d, ok := rule["description"].(string); (!ok || d == "") && !strings.HasSuffix(path, ".*") {
			t.Errorf("%s is not explained", path)
		}
		if ref, ok := rule["$ref"].(string); ok {
			rule = raw["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		}
		for of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if sub, ok := rule["additionalProperties"].(map[string]any); ok {
			if sub["$ref"] != "#/$defs/setting" {
				compare(path+".*", sub, of.Elem())
			}
			return
		}
		props, ok := rule["properties"].(map[string]any)
		if !ok {
			seen++
			return
		}
		fields := make(map[string]reflect.Type)
		for f := range of.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			fields[name] = f.Type
		}
		for name, sub := range props {
			typ, ok := fields[name]
			if !ok {
				t.Errorf("%s.%s is in the schema alone", path, name)
				continue
			}
			delete(fields, name)
			compare(path+"."+name, sub.(map[string]any), typ)
		}
		for name := range fields {
			t.Errorf("%s.%s is not in the schema", path, name)
		}
	}
	for name, typ := range map[string]reflect.Type{
		"": reflect.TypeFor[Config](), "repository": reflect.TypeFor[Repository](), "domain": reflect.TypeFor[Domain](), "job": reflect.TypeFor[Job](),
		"notice": reflect.TypeFor[Notice](), "secret": reflect.TypeFor[Secret](),
	} {
		rule := raw
		if name != "" {
			rule = raw["$defs"].(map[string]any)[name].(map[string]any)
		}
		compare(name, rule, typ)
	}
	if seen < 80 {
		t.Errorf("only %d keys were compared", seen)
	}
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ schedule, after, want string }{
		{"daily 02:30", "2026-11-28T02:29:59+01:00", "2026-11-28T02:30:00+01:00"},
		{"daily 02:30", "2026-11-28T02:30:00+01:00", "2026-11-29T02:30:00+01:00"},
		{"daily", "2026-11-28T12:00:00+01:00", "2026-11-29T00:00:00+01:00"},
		{"hourly", "2026-11-28T12:00:00+01:00", "2026-11-28T13:00:00+01:00"},
		{"weekly", "2026-11-28T12:00:00+01:00", "2026-11-29T00:00:00+01:00"},
		{"weekly Wed 4:05", "2026-11-28T12:00:00+01:00", "2026-12-02T04:05:00+01:00"},
		{"monthly", "2026-11-28T12:00:00+01:00", "2026-12-01T00:00:00+01:00"},
		{"30 2 * * 1-5", "2026-11-28T12:00:00+01:00", "2026-11-30T02:30:00+01:00"},
		{"0 0 29 2 *", "2026-11-28T12:00:00+01:00", "2028-02-29T00:00:00+01:00"},
		// In spring there is no 02:30: it is done an hour later, not left out.
		{"daily 02:30", "2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00"},
		{"daily 02:30", "2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"},
		// In autumn it comes twice, and is done once.
		{"daily 02:30", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"daily 02:30", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"},
	} {
		s, err := ParseSchedule(c.schedule)
		if err != nil {
			t.Error(err)
			continue
		}
		after, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		next, ok := s.Next(after.In(berlin))
		if got := next.Format(time.RFC3339); !ok || got != c.want {
			t.Errorf("%s after %s: %s, want %s", c.schedule, c.after, got, c.want)
		}
	}
	if _, ok := (Schedule{}).Next(time.Now()); ok {
		t.Error("never has a next time")
	}
}

// Whatever the text, it is refused or shown so that it can be read again.
func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := Parse("f", data)
		if err != nil {
			return
		}
		shown, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Parse("f", shown); err != nil && !strings.Contains(string(shown), "(not shown)") {
			t.Fatalf("%v\n%s", err, shown)
		}
	})
}

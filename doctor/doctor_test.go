// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qemu"
)

// level demands what was found: its levels, and that whatever is not ok has advice.
func level(t *testing.T, found []Finding, want Level, texts ...string) {
	t.Helper()
	if Worst(found) != want {
		t.Errorf("%v, want %v: %+v", Worst(found), want, found)
	}
	var all strings.Builder
	for _, f := range found {
		all.WriteString(f.Text + "\n")
		if f.Level != OK && f.Advice == "" {
			t.Errorf("%+v: what is one to do?", f)
		}
	}
	for _, text := range texts {
		if !strings.Contains(all.String(), text) {
			t.Errorf("nothing is said of %q: %s", text, all.String())
		}
	}
}

// What hangs has failed, and what others have found is told in its order.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		found := Run(t.Context(), []Check{
			{"first", func(context.Context) []Finding { return []Finding{ok("a"), warning("do", "b")} }},
			{"hangs", func(context.Context) []Finding { <-hang; return nil }},
			{"ends", func(ctx context.Context) []Finding { <-ctx.Done(); return []Finding{failed("wait", "%v", ctx.Err())} }},
			{"last", func(context.Context) []Finding { return []Finding{ok("c")} }},
		}, 100*time.Millisecond)
		var said []string
		for _, f := range found {
			said = append(said, f.Check+" "+f.Level.String())
		}
		if got := strings.Join(said, ", "); got != "first ok, first warning, hangs failed, ends failed, last ok" {
			t.Error(got)
		}
		level(t, found, Failed, "there is no answer after 100ms", "deadline exceeded")
	})
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for v, want := range map[qemu.Version]struct {
		level Level
		text  string
	}{
		{Major: 3, Minor: 1}: {Failed, "no command for bitmaps"}, {Major: 4, Minor: 1}: {Failed, "damages qcow2"},
		{Major: 4, Minor: 1, Micro: 1}: {Failed, "no command for bitmaps"}, {Major: 5, Micro: 94}: {Failed, "no command"},
		{Major: 5, Minor: 1}: {Warning, "7.2 to 10.0"}, {Major: 7, Minor: 2}: {OK, ""}, {Major: 10}: {OK, ""}, {Major: 11}: {OK, ""},
	} {
		level(t, []Finding{judge(qemu.Found{Version: v})}, want.level, want.text)
	}
}

// What only drills need is missed only where they are run.
func TestForDrills(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "kvm")
	level(t, Host{KVM: missing}.kvm(t.Context()), OK, "there is no "+missing)
	level(t, Host{KVM: missing, Drills: true}.kvm(t.Context()), Warning)
	level(t, Host{Memory: memory.Of(64<<20, "a test")}.room(t.Context()), Warning, "64 MiB (a test)")
	level(t, Host{Memory: memory.Of(128<<20, "a test")}.room(t.Context()), OK, "slower")
	for _, c := range (Host{}).Checks() {
		if len(c.Look(t.Context())) == 0 {
			t.Errorf("%s says nothing", c.Name)
		}
	}
}

func TestFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "a.raw")
	if err := os.WriteFile(image, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	level(t, Folder{Path: dir, Images: true, Files: []string{image}}.look(t.Context()), OK, "free", "flock", "QEMU's locks", "reflinks")
	level(t, Folder{Path: dir, Images: true, Files: []string{image + "x"}}.look(t.Context()), Failed, "a.rawx: no such file")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("something is left: %v, %v", entries, err)
	}
	none := filepath.Join(dir, "none")
	level(t, Folder{Path: none}.look(t.Context()), Failed, "no such file")
	level(t, Folder{Path: none, Made: true}.look(t.Context()), OK, "it is made when it is needed")

	// A VM that has the image is worth a word, and no fault.
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := qemu.LockExclusive(f); err != nil {
		t.Fatal(err)
	}
	level(t, Folder{Path: dir, Files: []string{image}}.look(t.Context()), OK, "is in use")
}

// A folder's file system may be read-only, or full, or know no files without names.
func TestFolderOfAnotherKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	level(t, Folder{Path: dir}.look(t.Context()), Failed, "1.0 MiB free")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=2g"); err != nil {
		t.Fatal(err)
	}
	level(t, Folder{Path: dir}.look(t.Context()), Failed, "can't be written to")
	level(t, Folder{Path: dir, Images: true}.look(t.Context()), Warning, "no bitmaps are added there")
	level(t, Folder{Path: "/proc"}.look(t.Context()), Failed) // it has no room
}

// clocked is a store with a clock of its own.
type clocked struct {
	objstore.Store
	theirs, ours time.Time
}

func (c clocked) Clock() (theirs, ours time.Time) { return c.theirs, c.ours }

func TestRepository(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	now := time.Now()
	for name, c := range map[string]struct {
		store objstore.Store
		err   error
		want  Level
		texts []string
	}{
		"none":         {mem, nil, Failed, []string{"there is no repository"}},
		"none, skewed": {clocked{mem, now, now.Add(-time.Hour)}, nil, Failed, []string{"there is no repository", "1h0m0s behind the store's"}},
		"unreachable":  {nil, errors.New("no route"), Failed, []string{"no route"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Repository{Open: func(ctx context.Context) (objstore.Store, *chain.Repository, error) {
				if c.err != nil {
					return nil, nil, c.err
				}
				repo, err := chain.Open(ctx, c.store)
				return c.store, repo, err
			}}
			level(t, r.look(t.Context()), c.want, c.texts...)
		})
	}
	if _, err := chain.Init(t.Context(), mem, chain.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[time.Duration]struct {
		level Level
		text  string
	}{
		0: {OK, "are the same"}, 2 * time.Second: {OK, "are the same"}, -5 * time.Second: {OK, "5s behind"},
		time.Minute: {Warning, "1m0s ahead of"}, -11 * time.Minute: {Failed, "11m0s behind"},
	} {
		store := clocked{mem, now, now.Add(d)}
		r := Repository{Place: "here", Open: func(ctx context.Context) (objstore.Store, *chain.Repository, error) {
			repo, err := chain.Open(ctx, store)
			return store, repo, err
		}}
		level(t, r.look(t.Context()), want.level, "here: opened in", want.text)
	}
}

// What AppArmor confines is read of a kernel that has it.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	h := Host{Root: t.TempDir()}
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(h.Root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	const profiles = "sys/kernel/security/apparmor/profiles"
	level(t, h.appArmor(t.Context()), OK, "not in force")
	write("sys/module/apparmor/parameters/enabled", "N\n")
	level(t, h.appArmor(t.Context()), OK, "not in force")
	write("sys/module/apparmor/parameters/enabled", "Y\n")
	write("proc/self/attr/current", "unconfined\n")
	level(t, h.appArmor(t.Context()), OK, "has no profiles of libvirt")
	write(profiles, "/usr/sbin/cupsd (enforce)\n")
	level(t, h.appArmor(t.Context()), OK, "has no profiles of libvirt")
	write(profiles, "/usr/sbin/cupsd (enforce)\nlibvirt-0f8fad5b-d9cb-469f-a165-70867728950e (enforce)\n")
	level(t, h.appArmor(t.Context()), OK, "libvirt's guests are confined", "local/abstractions/libvirt-qemu")
	write("proc/self/attr/current", "imgbackup (enforce)\n\x00")
	level(t, h.appArmor(t.Context()), Warning, `profile "imgbackup (enforce)"`, "libvirt's guests are confined")
}

// What systemctl and virsh say is told, with stand-ins for both. (It sets PATH, and so is not
// parallel.)
func TestStandIns(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	stand := func(name, script string) {
		t.Helper()
		testkit.Program(t, filepath.Join(dir, name), "#!/bin/sh\n"+script+"\n")
	}
	const text = `
repositories: {r: {place: /r}}
jobs:
  nightly: {repository: r, domains: [web], schedule: daily, on_running: shutdown}
  weekly: {repository: r, domains: [web], schedule: weekly, on_running: shutdown, shutdown: {by: agent, connect: 'qemu:///session'}}
`
	c, _, err := config.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	j := Jobs{Config: c, Path: "f", Crontabs: []string{}, Booted: dir}
	level(t, j.timers(t.Context()), Warning, "is not known", "systemctl")
	stand("systemctl", `[ "$1" = is-active ] || exit 9; shift; for u; do case $u in *nightly*) echo active;; *) echo inactive;; esac; done; exit 3`)
	level(t, j.timers(t.Context()), Failed, "job weekly has a schedule, and nobody starts it: imgbackup@weekly.timer is not active")
	stand("systemctl", `shift; for u; do case $u in *due*) echo inactive;; *) echo active;; esac; done; exit 3`)
	level(t, j.timers(t.Context()), OK, "2, all active")
	stand("systemctl", `shift; for u; do case $u in *due*) echo active;; *) echo inactive;; esac; done; exit 3`)
	level(t, j.timers(t.Context()), OK, "imgbackup-due.timer starts what is due")
	stand("systemctl", `echo "Failed to connect to bus"; exit 1`)
	level(t, j.timers(t.Context()), Warning, "is-active says", "Failed to connect to bus")

	level(t, j.virsh(t.Context()), Failed, "jobs shut VMs down by it", "virsh")
	stand("virsh", `case $3 in *session) echo "error: failed to connect" >&2; exit 1;; esac`)
	level(t, j.virsh(t.Context()), Failed, "qemu:///session: ask libvirt for its domains: failed to connect")
	stand("virsh", `exit 0`)
	level(t, j.virsh(t.Context()), OK, "virsh reaches libvirt")
	for name, job := range c.Jobs {
		job.Shutdown.By = "command"
		c.Jobs[name] = job
	}
	stand("virsh", `exit 1`)
	level(t, j.virsh(t.Context()), OK, "no job shuts VMs down through libvirt")
}

const jobsText = `
state: STATE
definitions: STATE/none
repositories: {r: {place: /r, credentials: {AWS_SECRET_ACCESS_KEY: {file: STATE/secret}}}}
notices: {mail: {ping: {url: {credential: imgbackup-test-ping}}}, env: {ping: {url: {environment: PING_URL}}}}
jobs:
  nightly: {repository: r, domains: [web, "x*"], schedule: daily}
  by-hand: {repository: r, domains: [none]}
domains: {web: {disks: ["vda=/vm/web.raw,format=raw"]}}
`

func TestJobs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, warnings, err := config.Parse("f", []byte(strings.ReplaceAll(jobsText, "STATE", dir)))
	if err != nil {
		t.Fatal(err)
	}
	cron := filepath.Join(dir, "crontab")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(cron, "# imgbackup run\n0 0 * * * root true\n", 0o600)
	env := map[string]string{}
	j := Jobs{Config: c, Path: "f", Warnings: warnings, Getenv: func(name string) string { return env[name] }, Crontabs: []string{cron}}
	level(t, j.valid(t.Context()), Failed, "job by-hand: none is not defined", "job nightly: no domain matches x*")
	level(t, j.secrets(t.Context()), Failed, "secret: no such file", "PING_URL is not set", "imgbackup-test-ping is in none of systemd's folders")
	write(filepath.Join(dir, "secret"), "x\n", 0o644)
	env["PING_URL"] = "http://127.0.0.1/"
	level(t, j.secrets(t.Context()), Warning, "can be read by others")
	if err := os.Chmod(filepath.Join(dir, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	env["CREDENTIALS_DIRECTORY"] = dir
	write(filepath.Join(dir, "imgbackup-test-ping"), "http://127.0.0.1/\n", 0o600)
	level(t, j.secrets(t.Context()), OK, "3, and all")

	if found := j.timers(t.Context()); Worst(found) == OK {
		t.Errorf("nobody starts nightly: %+v", found)
	}
	write(cron, "*/15 * * * * root imgbackup run --due\n", 0o600)
	level(t, j.timers(t.Context()), OK, cron)

	level(t, j.state(t.Context()), OK, "free")
	write(filepath.Join(dir, "stopped", "web.json"), `{"domain":"web"}`, 0o600)
	if found := j.state(t.Context()); Worst(found) == OK {
		t.Errorf("a VM waits to be started: %+v", found)
	}
}

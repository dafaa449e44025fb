// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/config"
)

// A VM is a file here, "on" or "off", and a script is what it is shut down, started and
// asked by, and its backup. The script counts its calls, so that a run can be killed, or
// told to end, before and after each of them.
const vmScript = `
cd "$2"
n=$(($(cat calls 2>/dev/null || echo 0) + 1)); echo $n >calls
echo "$1" >>done
hit() { if [ "$VM_HIT" = "$n:$1" ]; then echo >hit; kill -$VM_SIGNAL $PPID; [ $VM_SIGNAL = TERM ] || exit 9; fi; }
hit before
r=0
case $1 in
running) if [ -e slow ]; then mv slow vm; fi; [ "$(cat vm)" = on ] || r=1;;
stop) case $VM_STOP in never) ;; hangs) sleep 1000;; refuses) r=4;; slowly) echo off >slow;; *) echo off >vm;; esac;;
start) [ "$VM_START" = fails ] && r=3 || echo on >vm;;
backup) if [ "$(cat vm)" = on ]; then echo 'imgbackup: it is in use' >&2; r=5; else echo '{"backed": "up"}'; fi;;
esac
hit after
exit $r
`

// inside is the environment variable by which a test runs a job in a process of its own.
const inside = "IMGBACKUP_JOBS_TEST"

func TestMain(m *testing.M) {
	dir := os.Getenv(inside)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	r, err := Execute(ctx, options(dir), os.Getenv("VM_JOB"))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	os.Exit(r.Status)
}

// options are those of a job "vms" that shuts the VM down, and of a job "none".
func options(dir string) Options {
	by := func(what string) []string { return []string{"sh", "-c", vmScript, "vm", what, dir} }
	inTime := time.Hour
	switch os.Getenv("VM_STOP") {
	case "never", "hangs": // what there is to wait for never comes
		inTime = 300 * time.Millisecond
	}
	return Options{
		Config: &config.Config{
			State: filepath.Join(dir, "state"), Definitions: filepath.Join(dir, "nowhere"), History: config.DefaultHistory,
			Domains: map[string]config.Domain{"web": {Disks: []string{"vda=x"}}},
			Jobs: map[string]config.Job{
				"none": {Repository: "r", Domains: []string{"no*"}},
				"vms": {
					Repository: "r", Domains: []string{"web"}, OnRunning: config.Running{What: config.Stop},
					Shutdown: config.Shutdown{By: "command", Timeout: config.Duration(inTime), Stop: by("stop"), Start: by("start"), Running: by("running")},
				},
			},
		},
		Self:  func(...string) *exec.Cmd { b := by(StepBackup); return exec.Command(b[0], b[1:]...) },
		Worse: func(a, b int) int { return max(a, b) }, InUse: 5, Host: "here", Now: time.Now,
	}
}

// vm is the VM of a test, which is on.
type vm struct {
	*testing.T
	dir string
}

func newVM(t *testing.T) *vm {
	v := &vm{t, t.TempDir()}
	v.put("vm", "on\n")
	return v
}

func (v *vm) put(name, text string) {
	v.Helper()
	if err := os.WriteFile(filepath.Join(v.dir, name), []byte(text), 0o600); err != nil {
		v.Fatal(err)
	}
}

func (v *vm) text(name string) string {
	v.Helper()
	text, err := os.ReadFile(filepath.Join(v.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// run runs a job in a process of its own.
func (v *vm) run(job string, env ...string) (status int, said string) {
	v.Helper()
	v.put("calls", "0")
	v.put("hit", "")
	v.put("done", "")
	if err := os.Remove(filepath.Join(v.dir, "hit")); err != nil {
		v.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), inside+"="+v.dir, "VM_JOB="+job), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		v.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func (v *vm) hit() bool { _, err := os.Stat(filepath.Join(v.dir, "hit")); return err == nil }

func (v *vm) noted() bool {
	_, err := os.Stat(filepath.Join(v.dir, "state/stopped/web.json"))
	return err == nil
}

func TestShutDownBackedUpStarted(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	for _, how := range []string{"at once", "slowly"} {
		if status, said := v.run("vms", "VM_STOP="+how); status != 0 {
			t.Fatalf("%s: status %d: %s", how, status, said)
		}
		if v.text("vm") != "on" || v.noted() || !strings.Contains(v.text("done"), "stop") || !strings.Contains(v.text("done"), "backup") {
			t.Errorf("%s: the VM is %s, noted %v, after %s", how, v.text("vm"), v.noted(), v.text("done"))
		}
	}
	r := lastRun(t, v.dir, "vms")
	if len(r.Steps) != 3 || !strings.Contains(string(r.Steps[1].Result), `"up"`) {
		t.Errorf("steps: %+v", r.Steps)
	}
	v.put("vm", "off\n")
	if status, _ := v.run("vms"); status != 0 || v.text("vm") != "off" {
		t.Errorf("a VM that was off: status %d, it is %s", status, v.text("vm"))
	}
}

func lastRun(t *testing.T, dir, job string) *Run {
	t.Helper()
	runs, damaged, err := NewHistory(filepath.Join(dir, "state")).Runs(job, 1)
	if err != nil || len(damaged) > 0 || len(runs) != 1 {
		t.Fatalf("the last run of %s: %v, %v, %v", job, runs, damaged, err)
	}
	return runs[0]
}

// However a run is killed, the next one starts the VM, be it of the job or of another.
func TestKilledWhileVMIsDown(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"none", "vms"} {
		points := 0
		for call, more := 1, true; more; call++ {
			v := newVM(t)
			for _, when := range []string{"before", "after"} {
				v.put("vm", "on\n")
				status, said := v.run("vms", "VM_SIGNAL=KILL", fmt.Sprintf("VM_HIT=%d:%s", call, when))
				if more = v.hit(); !more {
					if status != 0 {
						t.Fatalf("nothing was killed, and the status is %d: %s", status, said)
					}
					break
				}
				points++
				down := v.text("vm") == "off"
				if down && !v.noted() {
					t.Errorf("call %d: the VM is down, and nothing says so", call)
				}
				if status, said := v.run(next); status != 0 {
					t.Errorf("call %d, %s: the next run: status %d: %s", call, when, status, said)
				}
				if v.text("vm") != "on" || down && v.noted() {
					t.Errorf("call %d, %s, then %s: the VM is %s, noted %v", call, when, next, v.text("vm"), v.noted())
				}
			}
		}
		if points < 10 {
			t.Errorf("%d points only", points)
		}
	}
}

// Whenever a run is told to end, it starts the VM before it does.
func TestToldToEndWhileVMIsDown(t *testing.T) {
	t.Parallel()
	hits := 0
	for call := 1; ; call++ {
		v := newVM(t)
		for _, when := range []string{"before", "after"} {
			status, said := v.run("vms", "VM_STOP=slowly", "VM_SIGNAL=TERM", fmt.Sprintf("VM_HIT=%d:%s", call, when))
			if !v.hit() {
				break
			}
			hits++
			if status == 0 && !strings.Contains(v.text("done"), "backup") {
				t.Errorf("call %d, %s: nothing was backed up, and the run succeeded: %s", call, when, said)
			}
			if v.text("vm") != "on" || v.text("slow") != "" {
				t.Errorf("call %d, %s: the VM is %s", call, when, v.text("vm"))
			}
		}
		if !v.hit() {
			break
		}
	}
	if hits < 10 {
		t.Errorf("%d points only", hits)
	}
}

// A VM that does not shut down in time fails; if it does so later, the next run starts it.
// After a day it is the business of others.
func TestShutsDownTooLate(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	if status, _ := v.run("vms", "VM_STOP=never"); status != 1 || !v.noted() || strings.Contains(v.text("done"), "backup") {
		t.Fatalf("status %d, noted %v, after %s", status, v.noted(), v.text("done"))
	}
	if d := lastRun(t, v.dir, "vms").Steps[0]; d.What != StepShutdown || !strings.Contains(d.Error, "still runs after") {
		t.Errorf("the shutdown: %+v", d)
	}
	if v.run("none"); !v.noted() {
		t.Error("while it runs it is not looked at again")
	}
	v.put("vm", "off\n")
	if status, said := v.run("none"); status != 0 || v.text("vm") != "on" || v.noted() {
		t.Errorf("status %d, the VM is %s, noted %v: %s", status, v.text("vm"), v.noted(), said)
	}

	v.run("vms", "VM_STOP=never")
	o := options(v.dir)
	o.Now = func() time.Time { return time.Now().Add(slow + time.Hour) }
	if steps := Recover(t.Context(), o); v.noted() || v.text("vm") != "on" {
		t.Errorf("a day later: %+v, noted %v", steps, v.noted())
	}
}

// A VM that can't be told to shut down stays on record where a run before may have told it, and only there.
func TestCannotBeTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(v *vm)
		noted  bool
	}{
		"never told":  {func(*vm) {}, false},
		"told before": {func(v *vm) { v.run("vms", "VM_STOP=never") }, true},
		"told before, for all we know": {func(v *vm) {
			v.run("vms", "VM_STOP=never")
			v.put("state/stopped/web.json", "{")
		}, true},
	} {
		v := newVM(t)
		c.before(v)
		if status, said := v.run("vms", "VM_STOP=refuses"); status != 1 || v.noted() != c.noted || strings.Contains(v.text("done"), "backup") {
			t.Errorf("%s: status %d, noted %v, after %s: %s", name, status, v.noted(), v.text("done"), said)
		}
		v.put("vm", "off\n")
		if v.run("none"); (v.text("vm") == "on") != c.noted {
			t.Errorf("%s: then the VM goes off, and is %s", name, v.text("vm"))
		}
	}
}

// A command that is to shut a VM down and does not end may have told it: so it is started again when it is off later.
func TestStopHangs(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	if status, _ := v.run("vms", "VM_STOP=hangs"); status != 1 || !v.noted() || strings.Contains(v.text("done"), "backup") {
		t.Fatalf("status %d, noted %v, after %s", status, v.noted(), v.text("done"))
	}
	if d := lastRun(t, v.dir, "vms").Steps[0]; d.What != StepShutdown || !strings.Contains(d.Error, "still runs after") {
		t.Errorf("the shutdown: %+v", d)
	}
	v.put("vm", "off\n")
	if status, said := v.run("none"); status != 0 || v.text("vm") != "on" || v.noted() {
		t.Errorf("status %d, the VM is %s, noted %v: %s", status, v.text("vm"), v.noted(), said)
	}
}

// A VM that can't be started stays on record, and is tried again by every run.
func TestCannotBeStarted(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	if status, _ := v.run("vms", "VM_START=fails"); status != 1 || !v.noted() || v.text("vm") != "off" {
		t.Errorf("status %d, noted %v", status, v.noted())
	}
	if status, _ := v.run("none", "VM_START=fails"); status != 1 || !v.noted() {
		t.Errorf("the next run: status %d, noted %v", status, v.noted())
	}
	if status, _ := v.run("vms"); status != 0 || v.noted() || v.text("vm") != "on" {
		t.Errorf("then: status %d, noted %v", status, v.noted())
	}
}

// What can't be noted is not shut down; what is damaged is told.
func TestCannotBeNoted(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	if err := os.Mkdir(filepath.Join(v.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	v.put("state/stopped", "")
	if status, _ := v.run("vms"); status != 1 || v.text("vm") != "on" || strings.Contains(v.text("done"), "stop") {
		t.Errorf("status %d, the VM is %s, after %s", status, v.text("vm"), v.text("done"))
	}
	if err := os.Remove(filepath.Join(v.dir, "state/stopped")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(v.dir, "state/stopped"), 0o700); err != nil {
		t.Fatal(err)
	}
	v.put("state/stopped/mail.json", `{"format": "imgbackup-stopped", "domain"`)
	if status, _ := v.run("vms"); status != 1 || v.text("vm") != "on" || !strings.Contains(v.text("done"), "backup") {
		t.Errorf("beside a damaged record: status %d, after %s", status, v.text("done"))
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// fleet are hosts with VMs of their own and one repository in a server's bucket.
type fleet struct {
	*testing.T
	server *s3test.Server
	bucket string
	dir    string
	hosts  []*fleetHost

	want map[string][]byte // DOMAIN/CHECKPOINT → what the disk held
}

type fleetHost struct {
	*fleet
	number int
	boot   int // how often it was started
	dir    string
	random *rand.Rand
	vms    []*fleetVM
	asked  int // requests of its last run,
	read   int // those of them that read indexes,
	made   int // and the backups that it made
}

type fleetVM struct {
	name  string
	disk  []byte
	known map[string]bool // its checkpoints
}

const fleetDisk = 1 << 20

// TestFleet: many hosts with many VMs back up to one MinIO, round after round, while checkpoints
// are forgotten and pruned; some lose their power. Nothing is lost, status tells how it is, and a
// backup asks no more of the server as the repository grows. With IMGBACKUP_SOAK=N there are 50
// hosts with 20 VMs each, or as many as IMGBACKUP_VMS says, and N rounds. It needs to be root.
func TestFleet(t *testing.T) {
	t.Parallel()
	hosts, vms, rounds, atOnce := 2, 3, 3, 2
	if n := soak(t); n > 1 {
		hosts, vms, rounds, atOnce = 50, 20, n, 4
		if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_VMS")); err == nil {
			vms = n
		}
	}
	f := newFleet(t, hosts, vms)
	var first float64
	for round := range rounds {
		killed := make(map[int]bool)
		if round > 0 {
			for len(killed) < max(1, hosts/10) {
				killed[hosts/2+rand.IntN(hosts-hosts/2)] = true
			}
		}
		asked, read, made := 0, 0, 0
		var g errgroup.Group
		g.SetLimit(atOnce)
		for _, h := range f.hosts {
			g.Go(func() error { h.round(killed[h.number]); return nil })
		}
		if round > 0 {
			f.program(nil, "forget", "--all-domains", "--keep-last", "2", "--prune")
		}
		_ = g.Wait() // failures are the test's
		for _, h := range f.hosts {
			// Of the others requests are counted: they have nothing to settle.
			if h.look(killed[h.number]); h.number < hosts/2 {
				asked, read, made = asked+h.asked, read+h.read, made+h.made
			}
		}
		if t.Failed() {
			return
		}
		each := float64(asked) / float64(made)
		t.Logf("round %d: %d backups, %.1f requests each, %.1f of them for indexes; hosts without power: %d", round, made, each, float64(read)/float64(made), len(killed))
		switch {
		case made == 0:
			t.Errorf("round %d: nothing was backed up", round)
		case read > 16*made: // a few of others and its own, however many hosts, nights and VMs there are
			t.Errorf("round %d: %d indexes were read for %d backups", round, read, made)
		case round == 1:
			first = each // increments from here on
		case round > 1 && each > 1.15*first+2*float64(round): // of each older map and pack it looks whether it is there
			t.Errorf("round %d: %.1f requests for each backup, and %.1f at first", round, each, first)
		}
	}
	f.verify()
}

func newFleet(t *testing.T, hosts, vms int) *fleet {
	f := &fleet{T: t, server: s3test.Start(t, s3test.MinIO), dir: t.TempDir(), want: make(map[string][]byte)}
	f.bucket = f.server.Bucket()
	f.program(nil, "init")
	empty := filepath.Join(f.dir, "empty.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", empty, fmt.Sprint(fleetDisk))
	image, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	for i := range hosts {
		h := &fleetHost{fleet: f, number: i, dir: filepath.Join(f.dir, fmt.Sprint("host", i)), random: rand.New(rand.NewPCG(uint64(i), 1))}
		var domains strings.Builder
		h.write("machine", fmt.Appendf(nil, "%032x\n", i+1))
		for j := range vms {
			vm := &fleetVM{name: fmt.Sprintf("vm%d-%d", i, j), disk: make([]byte, fleetDisk), known: make(map[string]bool)}
			h.vms = append(h.vms, vm)
			h.write(vm.name+".qcow2", image)
			fmt.Fprintf(&domains, "  %s: {disks: [\"vda=%s/%[1]s.qcow2,format=qcow2\"]}\n", vm.name, h.dir)
		}
		h.write("c.yaml", fmt.Appendf(nil, `state: %s/state
repositories: {site: {place: "s3://%s/r"}}
domains:
%sjobs:
  nightly: {repository: site, domains: ["vm%d-*"], schedule: daily, limits: {parallel: 2}}
`, h.dir, f.bucket, &domains, i))
		f.hosts = append(f.hosts, h)
	}
	return f
}

func (h *fleetHost) write(name string, data []byte) {
	if err := errors.Join(os.MkdirAll(h.dir, 0o755), os.WriteFile(filepath.Join(h.dir, name), data, 0o644)); err != nil {
		h.Fatal(err)
	}
}

// program runs a command on the machine that looks after the repository.
func (f *fleet) program(cmd *exec.Cmd, args ...string) []byte {
	if cmd == nil {
		cmd = exec.Command("imgbackup", append([]string{"-r", "s3://" + f.bucket + "/r"}, args...)...)
		cmd.Env = append(os.Environ(), f.server.Env()...)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		f.Errorf("%q: %v: %s", args, err, &stderr)
	}
	return out
}

// command is a command on the host: with its own name, machine and boot id and processes, all of
// which end when it is killed, as by a power failure.
func (h *fleetHost) command(endpoint string, args ...string) *exec.Cmd {
	const script = `set -e
hostname "$1"
mount -t proc proc /proc
if [ -e /etc/machine-id ]; then mount --bind "$2/machine" /etc/machine-id; fi
mount --bind "$2/boot" /proc/sys/kernel/random/boot_id
shift 2
exec "$@"`
	path, err := exec.LookPath("imgbackup")
	if err != nil {
		h.Fatal(err)
	}
	h.write("boot", fmt.Appendf(nil, "00000000-0000-4000-%04x-%012x\n", 0x8000+h.number, h.boot))
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", fmt.Sprint("host", h.number), h.dir, path, "--config", filepath.Join(h.dir, "c.yaml")}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
	cmd.Env = append(os.Environ(), h.server.Env()...)
	cmd.Env = append(cmd.Env, cacheVar+"="+filepath.Join(h.dir, "cache"))
	if endpoint != "" {
		cmd.Env = append(cmd.Env, "AWS_ENDPOINT_URL_S3="+endpoint)
	}
	return cmd
}

// round lets the guests write, and the host run its job; killed: it loses its power on the way.
func (h *fleetHost) round(killed bool) {
	for _, vm := range h.vms {
		if h.random.IntN(3) == 0 && len(vm.known) > 0 {
			continue
		}
		at, pattern := h.random.IntN(15)<<16, byte(1+h.random.IntN(250))
		testkit.Guest(h, filepath.Join(h.dir, vm.name+".qcow2"), fmt.Sprintf("write -P %d %d 64k", pattern, at))
		copy(vm.disk[at:], bytes.Repeat([]byte{pattern}, 64<<10))
	}
	proxy := s3test.NewProxy(h, h.server)
	cmd := h.command(proxy.URL, "run", "nightly", "--json")
	var out bytes.Buffer
	cmd.Stdout = &out
	told, err := cmd.StderrPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		h.Error(err)
		return
	}
	var said strings.Builder
	left := 1 + h.random.IntN(2*len(h.vms)-1)
	for lines := bufio.NewScanner(told); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if left--; killed && left == 0 {
			_ = cmd.Process.Kill() // it has not ended: it has more to tell
		}
	}
	err = cmd.Wait()
	if killed {
		if h.boot++; !diedBy(err, syscall.SIGKILL) {
			h.Errorf("host %d was to lose its power: %v: %s", h.number, err, &said)
		}
		return
	}
	var runs []jobs.Run
	if jerr := json.Unmarshal(out.Bytes(), &runs); err != nil || jerr != nil || len(runs) != 1 {
		h.Errorf("host %d: %v, %v: %s", h.number, err, jerr, &said)
		return
	}
	h.made, h.asked = 0, len(proxy.Methods())
	h.read = proxy.CountKeys("GET", "/index/")
	for _, d := range runs[0].Steps {
		if d.What == jobs.StepBackup && d.Status == exitDone && d.Skipped == "" {
			h.made++
		}
	}
	if h.made != len(h.vms) {
		h.Errorf("host %d: %d of %d VMs were backed up: %s", h.number, h.made, len(h.vms), &said)
	}
}

// look demands that what a round did is there, and that status tells of it.
func (h *fleetHost) look(killed bool) {
	h.Helper()
	repo := h.open()
	count := make(map[string]int)
	for _, vm := range h.vms {
		names, err := repo.Checkpoints(context.Background(), vm.name)
		if err != nil {
			h.Fatal(err)
		}
		added := 0
		for _, name := range names {
			if !vm.known[name] {
				added++
				vm.known[name] = true
				h.want[vm.name+"/"+name] = bytes.Clone(vm.disk)
			}
		}
		if count[vm.name] = len(names); added > 1 || added == 0 && !killed {
			h.Errorf("%s: %d new checkpoints", vm.name, added)
		}
	}
	cmd := h.command("", "status", "--json")
	out, err := cmd.Output()
	var s struct {
		Level   string
		Domains []struct {
			Domain, Level string
			Checkpoints   int
			Findings      []struct{ Text string }
		}
	}
	if json.Unmarshal(out, &s) != nil || len(s.Domains) != len(h.vms) {
		h.Fatalf("status of host %d: %v: %s", h.number, err, out)
	}
	for _, d := range s.Domains {
		cut := len(d.Findings) == 1 && d.Findings[0].Text == "the last run was cut off"
		none := d.Checkpoints == 0 && d.Level == "critical"
		if d.Checkpoints != count[d.Domain] || !killed && d.Level != "good" || killed && !none && (!cut || d.Level != "warning") {
			h.Errorf("host %d, killed %v, %d checkpoints: %+v", h.number, killed, count[d.Domain], d)
		}
	}
}

func (f *fleet) open() *chain.Repository {
	store, err := s3.Open(f.server.Config(f.bucket, "r"))
	if err != nil {
		f.Fatal(err)
	}
	repo, err := chain.Open(context.Background(), store)
	if err != nil {
		f.Fatal(err)
	}
	return repo
}

// verify demands that all is whole, that nothing is left at work, and that each VM's newest
// checkpoint, and some others, restore to what the disk held.
func (f *fleet) verify() {
	f.Helper()
	for _, h := range f.hosts {
		h.round(false) // which settles what a power failure left
		h.look(false)
	}
	f.program(nil, "check", "--read-data")
	repo := f.open()
	runs, unusable, err := repo.Runs(context.Background())
	if err := errors.Join(append(unusable, err)...); err != nil || len(runs) > 0 {
		f.Errorf("%d runs are left: %v", len(runs), err)
	}
	n := 0
	for _, h := range f.hosts {
		for i, vm := range h.vms {
			ms, damaged, err := repo.Manifests(context.Background(), vm.name)
			if err := errors.Join(append(damaged, err)...); err != nil {
				f.Fatal(err)
			}
			if i%5 != 0 {
				ms = ms[len(ms)-1:]
			}
			for _, m := range ms {
				out := filepath.Join(f.dir, "out.raw")
				f.program(nil, "restore", vm.name, m.Checkpoint, "--to", "vda="+out, "--format", "raw", "--force")
				data, err := os.ReadFile(out)
				if err != nil || !bytes.Equal(data, f.want[vm.name+"/"+m.Checkpoint]) {
					f.Errorf("%s/%s has other bytes than the disk had: %v", vm.name, m.Checkpoint, err)
				}
				n++
			}
		}
	}
	if n < len(f.hosts)*2 {
		f.Errorf("%d checkpoints were restored", n)
	}
}

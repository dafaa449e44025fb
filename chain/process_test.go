// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const (
	machineIDText = "0123456789abcdef0123456789abcdef"
	bootIDText    = "11111111-2222-3333-4444-555555555555"
)

func stat(pid, name string, start string) string {
	return pid + " (" + name + ") S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 4 0 " + start + " 169 18446744073709551615 1 1\n"
}

// fakeHost has processes 1, 9000017, which is larger than any can be, and this one.
func fakeHost() fstest.MapFS {
	return fstest.MapFS{
		"proc/sys/kernel/hostname":                           {Data: []byte("node7\n")},
		"etc/machine-id":                                     {Data: []byte(machineIDText + "\n")},
		"proc/sys/kernel/random/boot_id":                     {Data: []byte(bootIDText + "\n")},
		"proc/self/ns/pid":                                   {Data: []byte("pid:[4026531836]"), Mode: fs.ModeSymlink},
		"proc/1/task/1/stat":                                 {Data: []byte(stat("1", "init", "5"))},
		"proc/9000017/task/9000017/stat":                     {Data: []byte(stat("9000017", "odd) S 1 (name", "900"))},
		"proc/" + pidText() + "/task/" + pidText() + "/stat": {Data: []byte(stat("7", "imgbackup", "1000"))},
	}
}

func pidText() string { return strconv.Itoa(os.Getpid()) }

// failing is a file system that fails to read one file.
type failing struct {
	fstest.MapFS
	name string
	hit  bool
}

var errRead = errors.New("input/output error")

func (f *failing) ReadFile(name string) ([]byte, error) {
	if name == f.name {
		f.hit = true
		return nil, &fs.PathError{Op: "read", Path: name, Err: errRead}
	}
	return f.MapFS.ReadFile(name)
}

func (f *failing) ReadLink(name string) (string, error) {
	if name == f.name {
		f.hit = true
		return "", &fs.PathError{Op: "readlink", Path: name, Err: errRead}
	}
	return f.MapFS.ReadLink(name)
}

func TestSelf(t *testing.T) {
	t.Parallel()
	p, err := self(fakeHost(), "")
	if err != nil || p.Host.Name != "node7" || p.BootID != bootIDText || len(p.Host.ID) != 32 || p.Host.ID == machineIDText ||
		p.PIDNamespace != "pid:[4026531836]" || p.ProcessStart != 1000 || p.PID != os.Getpid() {
		t.Errorf("%+v, %v", p, err)
	}
	r := newRepository(t)
	if p, err := r.Self(); err != nil || p.Host.Name == "" || p.BootID == "" || p.ProcessStart == 0 {
		t.Errorf("this host: %+v, %v", p, err)
	}
	r.HostID, err = GivenHostID("site 1\n")
	if p, gerr := r.Self(); err != nil || gerr != nil || p.Host.ID != r.HostID || !strings.HasPrefix(p.Host.ID, givenPrefix) {
		t.Errorf("a given id: %+v, %v, %v", p, err, gerr)
	}
	for _, bad := range []string{"", " \n", strings.Repeat("x", maxHostID+1)} {
		if id, err := GivenHostID(bad); err == nil {
			t.Errorf("%.20q became %s", bad, id)
		}
	}
}

// TestHostID: only what is not there is absent.
func TestHostID(t *testing.T) {
	t.Parallel()
	const dbus = "var/lib/dbus/machine-id"
	full, err := self(fakeHost(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(root fstest.MapFS)
		id     string // "": none
		err    bool
	}{
		"as it is":        {func(fstest.MapFS) {}, full.Host.ID, false},
		"absent":          {func(root fstest.MapFS) { delete(root, "etc/machine-id") }, "", false},
		"empty":           {func(root fstest.MapFS) { root["etc/machine-id"] = &fstest.MapFile{Data: []byte("\n")} }, "", false},
		"not made yet":    {func(root fstest.MapFS) { root["etc/machine-id"] = &fstest.MapFile{Data: []byte("uninitialized\n")} }, "", false},
		"the second file": {func(root fstest.MapFS) { root[dbus] = root["etc/machine-id"]; delete(root, "etc/machine-id") }, full.Host.ID, false},
		"too short":       {func(root fstest.MapFS) { root["etc/machine-id"] = &fstest.MapFile{Data: []byte("0123")} }, "", true},
		"no digits": {func(root fstest.MapFS) {
			root["etc/machine-id"] = &fstest.MapFile{Data: []byte(strings.Repeat("x", 32))}
		}, "", true},
	} {
		root := fakeHost()
		c.change(root)
		p, err := self(root, "")
		if (err != nil) != c.err || err == nil && p.Host.ID != c.id {
			t.Errorf("%s: %+v, %v", name, p.Host, err)
		}
	}
	for _, file := range []string{
		"etc/machine-id", "proc/sys/kernel/random/boot_id", "proc/sys/kernel/hostname", "proc/self/ns/pid", "proc/" + pidText() + "/task/" + pidText() + "/stat",
	} {
		root := &failing{MapFS: fakeHost(), name: file}
		if p, err := self(root, ""); !errors.Is(err, errRead) || !strings.Contains(err.Error(), "find out") {
			t.Errorf("%s can't be read: %+v, %v", file, p, err)
		}
		if !root.hit {
			t.Errorf("%s was not read", file)
		}
	}
	// A person's word makes the machine id unnecessary, not the rest.
	if p, err := self(&failing{MapFS: fakeHost(), name: "etc/machine-id"}, "given-x"); err != nil || p.Host.ID != "given-x" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestFate(t *testing.T) {
	t.Parallel()
	me, err := self(fakeHost(), "")
	if err != nil {
		t.Fatal(err)
	}
	given, err := GivenHostID("web farm")
	if err != nil {
		t.Fatal(err)
	}
	alive := me
	alive.PID, alive.ProcessStart = 9000017, 900
	for name, c := range map[string]struct {
		change func(me, p *Process, root fstest.MapFS)
		want   Fate
	}{
		"alive":             {func(_, _ *Process, _ fstest.MapFS) {}, FateAlive},
		"gone":              {func(_, p *Process, _ fstest.MapFS) { p.PID = 9000018 }, FateEnded},
		"its id used again": {func(_, p *Process, _ fstest.MapFS) { p.ProcessStart = 899 }, FateEnded},
		"restarted":         {func(_, p *Process, _ fstest.MapFS) { p.BootID = "another" }, FateEnded},
		"another host":      {func(_, p *Process, _ fstest.MapFS) { p.Host.ID, p.BootID, p.PID = "another", "another", 9000018 }, FateUnknown},
		"a cloned host":     {func(_, p *Process, _ fstest.MapFS) { p.Host.Name, p.BootID = "node8", "another" }, FateUnknown},
		"renamed since":     {func(_, p *Process, _ fstest.MapFS) { p.Host.Name, p.PID = "node8", 9000018 }, FateEnded},
		"a given id, renamed": {func(me, p *Process, _ fstest.MapFS) {
			me.Host.ID, p.Host = given, Host{"c-1", given}
			p.BootID = "another"
		}, FateEnded},
		"given and machine's":   {func(me, p *Process, _ fstest.MapFS) { me.Host.ID = given; p.BootID = "another" }, FateUnknown},
		"no machine id":         {func(me, p *Process, _ fstest.MapFS) { me.Host.ID, p.Host.ID, p.PID = "", "", 9000018 }, FateEnded},
		"none, and restarted":   {func(me, p *Process, _ fstest.MapFS) { me.Host.ID, p.Host.ID, p.BootID = "", "", "another" }, FateUnknown},
		"no boot id":            {func(me, p *Process, _ fstest.MapFS) { me.BootID, p.BootID, p.PID = "", "", 9000018 }, FateUnknown},
		"its boot is not known": {func(_, p *Process, _ fstest.MapFS) { p.BootID = "" }, FateUnknown},
		"another namespace":     {func(_, p *Process, _ fstest.MapFS) { p.PIDNamespace, p.PID = "pid:[1]", 9000018 }, FateUnknown},
		"no namespace":          {func(me, p *Process, _ fstest.MapFS) { me.PIDNamespace, p.PIDNamespace, p.PID = "", "", 9000018 }, FateUnknown},
		"no process shows":      {func(_, p *Process, root fstest.MapFS) { p.PID = 9000018; delete(root, "proc/1/task/1/stat") }, FateUnknown},
		"it is hidden": {func(_, p *Process, root fstest.MapFS) {
			p.PID = os.Getpid()
			delete(root, "proc/"+pidText()+"/task/"+pidText()+"/stat")
		}, FateUnknown},
		"its entry is broken": {func(_, _ *Process, root fstest.MapFS) {
			root["proc/9000017/task/9000017/stat"] = &fstest.MapFile{Data: []byte("9000017 x")}
		}, FateUnknown},
		"no process id": {func(_, p *Process, _ fstest.MapFS) { p.PID = 0 }, FateUnknown},
		"a zombie": {func(_, p *Process, root fstest.MapFS) {
			root["proc/9000017/task/9000017/stat"].Data = bytes.Replace(bytes.Replace(root["proc/9000017/task/9000017/stat"].Data, []byte(") S 1 1"), []byte(") Z 1 1"), 1), []byte(" 20 0 4 0 "), []byte(" 20 0 0 0 "), 1)
		}, FateEnded},
		"a zombie whose threads live": {func(_, p *Process, root fstest.MapFS) {
			root["proc/9000017/task/9000017/stat"].Data = bytes.Replace(root["proc/9000017/task/9000017/stat"].Data, []byte(") S 1 1"), []byte(") Z 1 1"), 1)
		}, FateAlive},
		"no start": {func(_, p *Process, _ fstest.MapFS) { p.ProcessStart = 0 }, FateUnknown},
	} {
		me, p, root := me, alive, fakeHost()
		c.change(&me, &p, root)
		if got := me.fate(root, p); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestFateOfContainer: from the initial namespace a container is seen to be gone.
func TestFateOfContainer(t *testing.T) {
	t.Parallel()
	link := func(namespace string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(namespace), Mode: fs.ModeSymlink}
	}
	const container, its = "pid:[4026532001]", "proc/9000020/ns/pid"
	me, err := self(fakeHost(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(me *Process, root fstest.MapFS)
		want   Fate
	}{
		"gone":             {func(*Process, fstest.MapFS) {}, FateEnded},
		"at work":          {func(_ *Process, root fstest.MapFS) { root[its] = link(container) }, FateUnknown},
		"another is":       {func(_ *Process, root fstest.MapFS) { root[its] = link("pid:[4026532002]") }, FateEnded},
		"from another one": {func(me *Process, _ fstest.MapFS) { me.PIDNamespace = "pid:[4026532002]" }, FateUnknown},
		"nothing is shown": {func(_ *Process, root fstest.MapFS) { delete(root, "proc/1/ns/pid") }, FateUnknown},
		"not known which":  {func(me *Process, _ fstest.MapFS) { me.PIDNamespace = "" }, FateUnknown},
		"on another boot":  {func(me *Process, _ fstest.MapFS) { me.BootID = "another"; me.Host.Name = "node8" }, FateUnknown},
		"ended, not reaped": {func(_ *Process, root fstest.MapFS) {
			root["proc/9000020/task/9000020/stat"] = root["proc/1/task/1/stat"]
		}, FateEnded},
	} {
		me, root := me, fakeHost()
		root["proc/1/ns/pid"], root["proc/9000017/ns/pid"] = link(initialNamespace), link(initialNamespace)
		other := Process{Host: Host{Name: "c-1"}, BootID: me.BootID, PID: 1, PIDNamespace: container, ProcessStart: 7}
		c.change(&me, root)
		if got := me.fate(root, other); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	// One that may not be looked at may be the one.
	root := &failing{MapFS: fakeHost(), name: its}
	root.MapFS["proc/1/ns/pid"], root.MapFS[its] = link(initialNamespace), link(initialNamespace)
	other := Process{Host: Host{Name: "c-1"}, BootID: me.BootID, PID: 1, PIDNamespace: container, ProcessStart: 7}
	if got := me.fate(root, other); got != FateUnknown || !root.hit {
		t.Errorf("not to be looked at: %v (asked: %v)", got, root.hit)
	}
}

func TestSameMachine(t *testing.T) {
	t.Parallel()
	me, err := self(fakeHost(), "")
	if err != nil {
		t.Fatal(err)
	}
	container := Process{Host: Host{Name: "c-1"}, BootID: me.BootID}
	other := Process{Host: Host{Name: me.Host.Name}, BootID: "another"}
	if !me.SameMachine(container) || me.SameMachine(other) || me.SameMachine(Process{}) {
		t.Error("machines are known by their boots and ids")
	}
}

// TestOwnProcess: this very process is found alive in the real /proc.
func TestOwnProcess(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	me, err := r.Self()
	if err != nil {
		t.Fatal(err)
	}
	if got := me.Fate(me); got != FateAlive {
		t.Errorf("this process is %v", got)
	}
	ended := me
	ended.ProcessStart++
	if got := me.Fate(ended); got != FateEnded {
		t.Errorf("another start time makes no difference: %v", got)
	}
	// A lease of the ended one is removed, this one's stays.
	own, gone := testLease(t), testLease(t)
	gone.Process, gone.Started = ended, time.Unix(1e9, 0).UTC()
	for _, l := range []*Lease{own, gone} {
		if err := r.PutLease(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.CleanLeases(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _, err := r.Leases(t.Context()); err != nil || len(left) != 1 || left[0].UUID != own.UUID {
		t.Errorf("%+v, %v", left, err)
	}
}

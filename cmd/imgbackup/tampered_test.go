// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
)

// tampered is an encrypted repository after a whole life, what stood in it before, and what its
// checkpoints hold.
type tampered struct {
	*testing.T
	dir    string
	states []map[string][]byte // all objects, after each event of its life; the last is how it is now
	want   map[string][]byte   // of checkpoints that are there now
	rand   *rand.Rand
	tried  map[string]int
	turn   int
}

const tamperedXML = `<domain type='kvm'><name>web</name><uuid>d5b1f4c0-63a4-4d3c-9f0e-0e6f2b1f7a12</uuid><memory>1024</memory>
<os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='IMAGE'/><target dev='vda'/></disk></devices></domain>`

// run runs a command on a repository of these objects, in memory.
func (r *tampered) run(objects map[string][]byte, key string, args ...string) outcome {
	r.Helper()
	return runIn(r.dir, inMemory(r, objects), key, args...)
}

// inMemory is a store with these objects.
func inMemory(t testing.TB, objects map[string][]byte) objstore.Store {
	t.Helper()
	store := objstore.NewMem()
	for k, data := range objects {
		if err := store.Put(t.Context(), k, bytes.NewReader(data), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

// runIn runs a command in this process on the repository in a store, with a key that lies in dir; "": none.
func runIn(dir string, store objstore.Store, key string, args ...string) outcome {
	var out, stderr bytes.Buffer
	p := program{in: strings.NewReader(""), out: &out, err: &stderr, wrap: func(objstore.Store) objstore.Store { return store }}
	all := []string{"--repo", dir + "/repo"}
	if key != "" {
		all = append(all, "--identity", dir+"/"+key)
	}
	code := run(append(all, args...), p)
	return outcome{code, out.String(), stderr.String()}
}

// do runs a command that has to succeed on the repository itself.
func (r *tampered) do(key string, args ...string) {
	r.Helper()
	var out, stderr bytes.Buffer
	args = append([]string{"--repo", r.dir + "/repo"}, args...)
	if key != "" {
		args = append(args, "--identity", r.dir+"/"+key)
	}
	p := program{in: strings.NewReader(""), out: &out, err: &stderr, workFactor: 8}
	if code := run(args, p); code != exitDone {
		r.Fatalf("imgbackup %v: %d: %s%s", args, code, out.String(), stderr.String())
	}
}

// happened notes how the repository is now.
func (r *tampered) happened() {
	r.Helper()
	f := &fort{TB: r, dir: r.dir}
	r.states = append(r.states, f.objects())
}

func (r *tampered) now() map[string][]byte { return r.states[len(r.states)-1] }

// live leads the repository's life.
func (r *tampered) live() {
	image, definition := r.dir+"/vda.qcow2", r.dir+"/web.xml"
	testkit.Tool(r, "qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
	if err := os.WriteFile(definition, []byte(strings.Replace(tamperedXML, "IMAGE", image, 1)), 0o600); err != nil {
		r.Fatal(err)
	}
	r.do("", "init", "--encrypt", "--out", r.dir+"/admin.key")
	r.do("admin.key", "key", "add", "web1", "--role", "host", "--domain", "web", "--out", r.dir+"/host.key")
	r.happened()
	for i, name := range []string{"c1", "c2", "c3", "c4"} {
		noise := r.dir + "/noise"
		data := make([]byte, 60<<10)
		for j := range data {
			data[j] = byte(r.rand.Uint32())
		}
		if err := os.WriteFile(noise, data, 0o600); err != nil {
			r.Fatal(err)
		}
		testkit.Guest(r, image, fmt.Sprintf("write -s %s %dk 60k", noise, i*100))
		r.do("host.key", "backup", "--domain-xml", definition, "--checkpoint", name)
		raw := testkit.Tool(r, "sh", "-c", `qemu-img convert -f qcow2 -O raw "$0" "$0.raw" && cat "$0.raw"`, image)
		r.want[name] = []byte(raw)
		r.happened()
	}
	r.do("admin.key", "tag", "web", "c1", "--add", "kept") // a second revision
	r.happened()
	r.do("admin.key", "drill", "web", "--skip", "image,filesystems,boot", "--scratch", r.dir)
	r.do("admin.key", "forget", "web", "c2")
	delete(r.want, "c2")
	r.happened()
	r.do("admin.key", "prune", "--max-unused", "0")
	r.happened()
	r.do("admin.key", "key", "add", "late", "--role", "manager", "--out", r.dir+"/late.key")
	r.happened()
	r.do("admin.key", "key", "rotate")
	r.do("host.key", "backup", "--domain-xml", definition, "--checkpoint", "c5")
	r.want["c5"] = r.want["c4"]
	r.happened()
}

// verdict is what came of something that was done to the repository.
type verdict struct {
	told  bool     // a check tells
	wrong []string // checkpoints that restore as something else, without an error
	right int      // how many restore as they should
	said  string
}

// judge checks what was done to the repository, and restores some checkpoints.
func (r *tampered) judge(objects map[string][]byte, key string, checkpoints ...string) (v verdict) {
	r.Helper()
	o := r.run(objects, key, "check", "--read-data")
	v.told, v.said = o.code != exitDone, fmt.Sprintf("%d: %s%s", o.code, o.out, o.err)
	if o.code != exitDone && o.code != exitDamage && o.code != exitKey {
		r.Errorf("check ends with %s", v.said)
	}
	for _, c := range checkpoints {
		switch o := r.run(objects, key, "restore", "web", c, "--to", "vda=-"); {
		case o.code == exitDone && o.out == string(r.want[c]):
			v.right++
		case o.code == exitDone:
			v.wrong = append(v.wrong, c)
		case o.code != exitDamage && o.code != exitKey && o.code != exitFailed || strings.Contains(o.err, "goroutine "):
			r.Errorf("restore of %s ends with %d: %s", c, o.code, o.err)
		}
	}
	return v
}

// with are all objects, and this one as it is told.
func (r *tampered) with(key string, data []byte) map[string][]byte {
	all := maps.Clone(r.now())
	all[key] = data
	return all
}

// exchangeable is what two objects must share to be exchanged for one another.
func exchangeable(key string) string {
	if prefix, _, ok := strings.Cut(key, "/"); ok && prefix != "domains" && prefix != "keys" {
		return prefix
	}
	return path.Dir(path.Dir(key)) + "/" + path.Base(path.Dir(key))
}

// unseen says why nobody can be told that an object was tampered with; empty: somebody is.
func unseen(what, key string) string {
	switch name := path.Base(key); {
	case strings.HasPrefix(key, "keys/") && path.Ext(key) == ".age" && name != "admin.age" && what != "cut short" && what != "made longer":
		return "it is encrypted to another member, whom it tells"
	case strings.HasPrefix(key, "prune/") && path.Ext(key) == ".zst":
		return "the list of a mark, which who goes by the mark proves"
	}
	return ""
}

// must demands that what was done to an object is told, if it can be, and that nothing wrong is
// restored.
func (r *tampered) must(what, key string, objects map[string][]byte) {
	r.Helper()
	some := slices.Sorted(maps.Keys(r.want))
	checkpoint := some[r.rand.IntN(len(some))]
	v := r.judge(objects, "admin.key", checkpoint)
	if len(v.wrong) > 0 {
		r.Errorf("%s %s: %v restores as something else", what, key, v.wrong)
	}
	if why := unseen(what, key); v.told == (why != "") {
		r.Errorf("%s %s: told: %v, %s: %s", what, key, v.told, why, v.said)
	}
	if v.right > 0 && len(r.tried) > 0 {
		r.kept(what, key, objects, checkpoint)
	}
	r.tried[what]++
	r.turn++
}

// kept: whatever an admin does in a repository of which something was tampered with, a checkpoint that restores
// goes on to.
func (r *tampered) kept(what, key string, objects map[string][]byte, checkpoint string) {
	r.Helper()
	forgotten := "c1"
	if checkpoint == forgotten {
		forgotten = "c3"
	}
	commands := [][]string{{"prune", "--max-unused", "0"}, {"repair"}, {"forget", "web", forgotten, "--prune"}}
	if r.turn%4 != 0 && os.Getenv("IMGBACKUP_SOAK") == "" {
		return
	}
	store, args := inMemory(r, objects), commands[r.turn/4%len(commands)]
	o := runIn(r.dir, store, "admin.key", args...)
	if o.code != exitDone && o.code != exitDamage && o.code != exitFailed || strings.Contains(o.err, "goroutine ") {
		r.Errorf("%s %s: %v ends with %d: %s", what, key, args, o.code, o.err)
	}
	if o := runIn(r.dir, store, "admin.key", "restore", "web", checkpoint, "--to", "vda=-"); o.code != exitDone || o.out != string(r.want[checkpoint]) {
		r.Errorf("%s %s: after %v %s restores no more: %d: %s", what, key, args, checkpoint, o.code, o.err)
	}
	r.tried[args[0]]++
}

// TestTampered: of a whole encrypted repository each object is changed at some place, cut short,
// made longer, exchanged for another of its kind, and put back to what stood there before. A
// check tells, and nothing is ever restored as something else; what nobody can be told of is listed in
// unseen, and in docs/security.md.
func TestTampered(t *testing.T) {
	t.Parallel()
	r := &tampered{T: t, dir: t.TempDir(), want: make(map[string][]byte), rand: rand.New(rand.NewPCG(20, 6)), tried: make(map[string]int)}
	r.live()
	if v := r.judge(r.now(), "admin.key", slices.Sorted(maps.Keys(r.want))...); v.told || v.right != len(r.want) {
		t.Fatalf("%+v", v)
	}
	keys := slices.Sorted(maps.Keys(r.now()))
	all := os.Getenv("IMGBACKUP_SOAK") != ""
	for i, key := range keys {
		data := r.now()[key]
		flipped := bytes.Clone(data)
		flipped[r.rand.IntN(len(data))] ^= 1 << r.rand.IntN(8)
		for j, change := range []struct {
			what string
			data []byte
		}{{"changed", flipped}, {"cut short", data[:r.rand.IntN(len(data))]}, {"made longer", append(bytes.Clone(data), 0)}} {
			if all || (i+j)%3 == 0 {
				r.must(change.what, key, r.with(key, change.data))
			}
		}
	}
	byKind := make(map[string][]string)
	for _, key := range keys {
		byKind[exchangeable(key)] = append(byKind[exchangeable(key)], key)
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		for i, key := range byKind[kind][1:] {
			other := byKind[kind][i]
			if i > 1 && !all || (unseen("exchanged", key) == "") != (unseen("exchanged", other) == "") {
				continue
			}
			objects := r.with(key, r.now()[other])
			objects[other] = r.now()[key]
			r.must("exchanged", key, objects)
		}
	}
	for i, old := range r.states[:len(r.states)-1] {
		for _, key := range keys {
			if data, ok := old[key]; ok && !bytes.Equal(data, r.now()[key]) {
				r.must(fmt.Sprintf("put back to state %d", i), key, r.with(key, data))
			}
		}
	}
	t.Log(r.tried)
	if r.tried["exchanged"] < 10 || len(r.tried) < 6 {
		t.Errorf("only %v was tried", r.tried)
	}
	r.before()
}

// before: until the keys are rotated, an earlier revision that was rightly signed counts, and
// restores what it always did.
func (r *tampered) before() {
	r.Helper()
	r.states = r.states[:len(r.states)-1]
	delete(r.want, "c5")
	untold := make(map[string]bool)
	for _, old := range r.states[:len(r.states)-1] {
		for key, data := range old {
			if now, ok := r.now()[key]; !ok || bytes.Equal(data, now) {
				continue
			}
			v := r.judge(r.with(key, data), "admin.key", "c1")
			if len(v.wrong) > 0 {
				r.Errorf("before a rotation: %s put back: %v restores as something else", key, v.wrong)
			}
			if !v.told {
				untold[key] = true
			}
		}
	}
	if got := slices.Sorted(maps.Keys(untold)); !slices.Equal(got, []string{"domains/web/checkpoints/c1.json"}) {
		r.Errorf("before a rotation nobody tells of an earlier %q", got)
	}
}

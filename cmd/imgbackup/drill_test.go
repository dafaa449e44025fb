// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
)

// drillWorld has two checkpoints of two disks, and a scratch folder.
func drillWorld(t *testing.T) (w *world, scratch string) {
	w = newWorld(t, 2)
	w.commit("c1")
	w.guest("vda", "write -P 9 1M 64k")
	w.look("vda")
	w.commit("c2")
	scratch = filepath.Join(w.dir, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	return w, scratch
}

// checkNothingLeft: a drill leaves nothing in its scratch folder, and the images as they
// were.
func (w *world) checkNothingLeft(scratch string) {
	w.Helper()
	left, err := os.ReadDir(scratch)
	if err != nil || len(left) > 0 {
		w.Errorf("%v is left, %v", left, err)
	}
	for _, target := range w.targets {
		if w.content(target) != w.now[target] {
			w.Errorf("%s has changed", target)
		}
	}
}

// drillSchema is docs/drill.schema.json.
func drillSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile("../../docs/drill.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// parseDrill checks a run's report against the schema, and reads it.
func parseDrill(t *testing.T, schema *jsonschema.Schema, text string) (run record.Run) {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if err := schema.Validate(v); err != nil {
		t.Errorf("%v", err)
	}
	if err := json.Unmarshal([]byte(text), &run); err != nil {
		t.Fatal(err)
	}
	return run
}

// TestDrillSchema: what is reported, whatever the verdict, is as the schema says; what is
// not, the schema refuses.
func TestDrillSchema(t *testing.T) {
	t.Parallel()
	w, scratch := drillWorld(t)
	schema := drillSchema(t)
	report := filepath.Join(w.dir, "report")
	out := w.must("drill", "--skip", "filesystems", "--checkpoint", "all", "--scratch", scratch, "--json", "--report", report, "--command", "echo hello")
	run := parseDrill(t, schema, out)
	if run.Verdict != record.VerdictPassed || len(run.Drills) != 2 || !run.Drills[0].Stored || run.Drills[0].Steps[4].Kept[0].Kind != "output" {
		t.Errorf("%s", out)
	}
	data, err := os.ReadFile(filepath.Join(report, "drill.json"))
	if err != nil || string(data) != out {
		t.Errorf("drill.json is not what is printed: %v", err)
	}
	w.checkNothingLeft(scratch)
	for _, wrong := range []string{`"verdict": "fine"`, `"duration_ms": -1`, `"kind": "film"`} {
		key, _, _ := strings.Cut(wrong, ":")
		at := strings.Index(out, key)
		end := at + strings.IndexAny(out[at:], ",\n")
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(out[:at] + wrong + out[end:]))
		if err != nil || schema.Validate(v) == nil {
			t.Errorf("the schema takes %s: %v", wrong, err)
		}
	}
	packs := filepath.Join(w.repo(), "packs")
	if err := os.RemoveAll(packs); err != nil {
		t.Fatal(err)
	}
	o := w.runWith(program{}, "drill", "--skip", "filesystems", "--scratch", scratch, "--json")
	run = parseDrill(t, schema, o.out)
	if o.code != exitDamage || run.Status != exitDamage || run.Drills[0].Steps[0].Status != record.Failed || run.Drills[0].Steps[0].WhatToDo == "" {
		t.Errorf("exit status %d: %s", o.code, o.out)
	}
	w.checkNothingLeft(scratch)
}

// away is a store that fails for good after some reads, and till then counts them.
type away struct {
	objstore.Store
	left *atomic.Int64
}

func (a *away) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if a.left.Add(-1) < 0 {
		return nil, objstore.MarkPermanent(errors.New("the store is away"))
	}
	return a.Store.Get(ctx, key, offset, length)
}

// TestDrillStoreAway: whenever the store goes away, that is neither a pass nor damage, and
// the report, if it came so far, says what to do.
func TestDrillStoreAway(t *testing.T) {
	t.Parallel()
	w, scratch := drillWorld(t)
	schema := drillSchema(t)
	var left atomic.Int64
	p := program{wrap: func(s objstore.Store) objstore.Store { return &away{s, &left} }}
	args := []string{"drill", "--skip", "filesystems", "--scratch", scratch, "--json", "--no-record"}
	left.Store(1 << 30)
	if o := w.runWith(p, args...); o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	reads := 1<<30 - left.Load()
	reported := 0
	for after := int64(0); after < reads; after += max(1, reads/12) {
		left.Store(after)
		o := w.runWith(p, args...)
		if o.code != exitFailed || !strings.Contains(o.err+o.out, "the store is away") {
			t.Errorf("after %d of %d reads: exit status %d: %s%s", after, reads, o.code, o.out, o.err)
		}
		if o.out != "" {
			reported++
			run := parseDrill(t, schema, o.out)
			if run.Verdict != record.VerdictIncomplete {
				t.Errorf("after %d of %d reads: %s", after, reads, run.Verdict)
			}
			for _, s := range run.Drills[0].Steps {
				if s.Status == record.Failed || s.Status == record.Skipped && s.WhatToDo == "" {
					t.Errorf("after %d of %d reads: %+v", after, reads, s)
				}
			}
		}
		w.checkNothingLeft(scratch)
	}
	if reported < 3 {
		t.Errorf("the store went away before the drill began: only %d reports", reported)
	}
}

// TestDrillSignals: an interrupt ends the drill and all that it has started; what a killed
// one has left the next one removes.
func TestDrillSignals(t *testing.T) {
	t.Parallel()
	w, scratch := drillWorld(t)
	args := []string{"drill", domain, "--skip", "filesystems", "--scratch", scratch, "--json", "--command"}
	o := w.outcome(w.child(nil, append(args, "kill -INT $PPID; exec sleep 1000 "+w.dir)...))
	if o.code != exitInterrupted {
		t.Errorf("exit status %d: %s%s", o.code, o.out, o.err)
	}
	run := parseDrill(t, drillSchema(t), o.out)
	steps := run.Drills[0].Steps
	if run.Status != exitInterrupted || run.Verdict != record.VerdictIncomplete || run.Drills[0].Stored || steps[len(steps)-1].Reason != "it was interrupted" {
		t.Errorf("%s", o.out)
	}
	w.checkNothingLeft(scratch)
	w.killed("X=", append(args, "kill -KILL $PPID; exec sleep 1000 "+w.dir)...)
	if left, err := os.ReadDir(scratch); err != nil || len(left) == 0 {
		t.Fatalf("nothing was left by the one that was killed, %v", err)
	}
	w.must("drill", domain, "--skip", "filesystems", "--scratch", scratch)
	w.checkNothingLeft(scratch)
}

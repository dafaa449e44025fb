// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/xml"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

func sample() *Record {
	at := time.Date(2026, 3, 1, 12, 0, 0, 5_000_001, time.UTC)
	digest := strings.Repeat("ab", 32)
	ms := int64(17)
	return &Record{
		Head: chain.Head{Format: Format, Version: Version}, Run: chain.NewUUID(), RepositoryID: chain.NewUUID(),
		Domain: "web", Checkpoint: "c1", CheckpointUUID: "0123abcd-ef01-4123-8123-0123456789ab", Revision: 1, Manifest: digest, Created: at,
		Disks: []Disk{{Disk: "vda", Size: 1 << 30, Maps: []string{digest}}},
		Host:  Host{Name: "h"}, Tool: "imgbackup", ChosenBy: "latest", Programs: map[string]string{"qemu_img": "7.2"},
		Begun: at, Ended: at.Add(time.Second), Required: []string{StepChunks, StepImage}, Verdict: VerdictIncomplete,
		Steps: []Step{
			{Step: StepChunks, Status: Passed, Begun: at, Duration: 5, Bytes: 6, Details: map[string]string{"chunks": "1"}},
			{Step: StepImage, Status: Skipped, Reason: "no <qemu-img> & so", WhatToDo: "install it", Begun: at},
			{Step: StepBoot, Status: Skipped, Reason: "no", Begun: at},
		},
		RTO: RTO{Restore: &ms}, RPO: RPO{Age: 3, Checkpoints: 1},
	}
}

// TestNames: a name tells what it was made of.
func TestNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMilli(rapid.Int64Range(0, 1<<47).Draw(t, "ms")).UTC()
		v := rapid.SampledFrom(verdicts()[1:]).Draw(t, "verdict")
		id := chain.NewUUID()
		n, err := NewName(at, v, id)
		if err != nil || !n.Begun.Equal(at) || n.Verdict != v || !n.Of(id) || n.Of(chain.NewUUID()) {
			t.Fatalf("%v of %v, %v, %v: %v", n, at, v, id, err)
		}
		again, err := ParseName(n.UUID)
		if err != nil || again != n {
			t.Fatalf("%v, %v", again, err)
		}
		if k := chain.ParseKey(chain.DrillKey("web & co", n.UUID)); k.Kind != chain.KeyDrill || k.Domain != "web & co" || k.Name != n.UUID {
			t.Fatalf("%v", k)
		}
		if k := chain.ParseKey(chain.DrillSignatureKey("web", n.UUID)); k.Kind != chain.KeyDrillSignature || k.Name != n.UUID {
			t.Fatalf("%v", k)
		}
	})
	if _, err := ParseName(chain.NewUUID()); err == nil {
		t.Error("a random UUID is a name")
	}
	whole, err := NewName(time.Now(), VerdictPassed, chain.NewUUID())
	if err != nil || whole.Partial || !whole.Tells() {
		t.Errorf("%v, %v", whole, err)
	}
	for v, tells := range map[Verdict]bool{VerdictPassed: false, VerdictIncomplete: false, VerdictFailed: true} {
		n, err := NewPartialName(time.Now(), v, chain.NewUUID())
		if err != nil || !n.Partial || n.Verdict != v || n.Tells() != tells {
			t.Errorf("a drill of some disks that %s: %v, %v", v, n, err)
		}
		if _, ok := Last([]Name{n}, n.Checkpoint); ok != tells {
			t.Errorf("a drill of some disks that %s is the checkpoint's last: %v", v, ok)
		}
	}
	if _, err := NewName(time.Now(), "fine", chain.NewUUID()); err == nil {
		t.Error("an unknown verdict has a name")
	}
}

// TestSealed: a record is what it was, every flipped bit is seen, and so is a name that
// says otherwise.
func TestSealed(t *testing.T) {
	t.Parallel()
	r := sample()
	data, err := Seal(r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(data, "web", r.UUID)
	if err != nil || again.Steps[1].Reason != r.Steps[1].Reason || *again.RTO.Restore != 17 || !again.Begun.Equal(r.Begun) {
		t.Fatalf("%v, %v", again, err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		if _, err := Parse(bad, "web", r.UUID); !archive.IsDamage(err) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for _, v := range []Verdict{VerdictPassed, VerdictFailed} {
		n, err := NewName(r.Begun, v, r.CheckpointUUID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(data, "web", n.UUID); !archive.IsDamage(err) {
			t.Errorf("under the name of %s: %v", v, err)
		}
	}
	if _, err := Parse(data, "mail", r.UUID); !archive.IsDamage(err) {
		t.Errorf("of another domain: %v", err)
	}
}

// TestInvalid: what breaks a bound is not stored.
func TestInvalid(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Record){
		"a long reason":    func(r *Record) { r.Steps[0].Reason = strings.Repeat("x", MaxText+1) },
		"no UTF-8":         func(r *Record) { r.Steps[0].Reason = "\xff" },
		"an unknown step":  func(r *Record) { r.Steps[0].Step = "sleep" },
		"a step twice":     func(r *Record) { r.Steps[1].Step = StepChunks },
		"a status":         func(r *Record) { r.Steps[0].Status = "fine" },
		"a detail's name":  func(r *Record) { r.Steps[0].Details = map[string]string{"A b": ""} },
		"a digest":         func(r *Record) { r.Manifest = "ab" },
		"a verdict":        func(r *Record) { r.Verdict = "" },
		"local time":       func(r *Record) { r.Ended = r.Ended.In(time.FixedZone("x", 3600)) },
		"no checkpoint":    func(r *Record) { r.Checkpoint = "" },
		"a long host":      func(r *Record) { r.Host.Name = strings.Repeat("h", 256) },
		"negative bytes":   func(r *Record) { r.Steps[0].Bytes = -1 },
		"disks, no digest": func(r *Record) { r.Manifest = "" },
	} {
		r := sample()
		change(r)
		if _, err := Seal(r); err == nil {
			t.Errorf("%s is stored", name)
		}
	}
}

// TestSignature: what ssh-keygen has signed we find good, and nothing else.
func TestSignature(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, kind := range []string{"ed25519", "rsa", "ecdsa"} {
		key := filepath.Join(dir, kind)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", kind, "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		data := []byte("what is signed by " + kind)
		sig, err := Sign(t.Context(), key, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckSignature(data, sig); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if err := CheckSignature(append(data, '!'), sig); !errors.As(err, new(*SignatureError)) {
			t.Errorf("%s, of other bytes: %v", kind, err)
		}
		pub, err := os.ReadFile(key + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		allowed := filepath.Join(dir, "allowed."+kind)
		if err := os.WriteFile(allowed, append([]byte(kind+"@x "), pub...), 0o600); err != nil {
			t.Fatal(err)
		}
		if who, err := VerifySignature(t.Context(), allowed, data, sig); err != nil || who != kind+"@x" {
			t.Errorf("%s: %s, %v", kind, who, err)
		}
		if _, err := VerifySignature(t.Context(), allowed, append(data, '!'), sig); !errors.As(err, new(*SignatureError)) {
			t.Errorf("%s, of other bytes: %v", kind, err)
		}
	}
	other := exec.Command("ssh-keygen", "-Y", "sign", "-q", "-n", "file", "-f", filepath.Join(dir, "ed25519"))
	other.Stdin = strings.NewReader("x")
	sig, err := other.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckSignature([]byte("x"), sig); !errors.As(err, new(*SignatureError)) {
		t.Errorf("for another purpose: %v", err)
	}
}

// TestJUnit: a required step that was skipped is an error there, others are skipped.
func TestJUnit(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Required = append(r.Required, StepFiles)
	data, err := JUnit(&Run{Begun: r.Begun, Ended: r.Ended, Drills: []Drilled{{Record: *r}}})
	if err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	s := got.Suites[0]
	if got.Tests != 4 || got.Errors != 2 || got.Failures != 0 || s.Skipped != 1 || s.Cases[1].Error.Message != "no <qemu-img> & so" {
		t.Errorf("%s", data)
	}
	data, err = JUnit(&Run{Verdict: VerdictIncomplete})
	if err != nil || xml.Unmarshal(data, &got) != nil || got.Errors != 1 {
		t.Errorf("a run that was cut off: %s, %v", data, err)
	}
}

func FuzzParse(f *testing.F) {
	r := sample()
	data, err := Seal(r)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := Parse(data, "web", r.UUID); err != nil {
		f.Fatal(err) // the seed must be good
	}
	f.Add(data, r.UUID)
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		r, err := Parse(data, "web", id)
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil || r.UUID != id {
			t.Errorf("%v, %v", r, err)
		}
	})
}

func FuzzSignature(f *testing.F) {
	f.Add([]byte("x"), []byte("-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQ==\n-----END SSH SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, data, sig []byte) {
		if err := CheckSignature(data, sig); err == nil {
			t.Errorf("%q is good", sig)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package testkit is what tests of several packages need: QEMU's tools, programs that
// hold images, namespaces to mount in. It imports nothing of ours.
package testkit

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TB is what is asked of a test; [testing.TB] and rapid.T are such.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Tool runs a program that must succeed, and returns its standard output.
func Tool(t TB, name string, args ...string) string {
	t.Helper()
	return ToolIn(t, "", name, args...)
}

// noClock is how qemu-img gives up at random when it is to make a LUKS image; it has made
// none then.
const noClock = "Unable to get accurate CPU usage"

// ToolIn is [Tool], run in the folder dir.
func ToolIn(t TB, dir, name string, args ...string) string {
	t.Helper()
	for tries := 1; ; tries++ {
		var stderr bytes.Buffer
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Stderr = dir, &stderr
		out, err := cmd.Output()
		switch {
		case err == nil:
			return string(out)
		case tries < 50 && strings.Contains(stderr.String(), noClock):
			continue
		}
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.String())
	}
}

// Guest writes to a qcow2 image as a guest does: commands of qemu-io, each of which must
// succeed.
func Guest(t TB, image string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2", image}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := Tool(t, "qemu-io", args...); strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %q: %s", commands, out)
	}
}

// Names lists a folder, hidden files included.
func Names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

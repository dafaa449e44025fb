// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
)

// Columns are aligned by what is seen, and nothing is cut that goes to no terminal.
func TestTable(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 100) + "end"
	var out bytes.Buffer
	tab := table{out: &out, indent: " "}
	tab.row("名前", "B", "C")
	tab.row("ab", "ö", "")
	tab.row("x", "", long)
	tab.legend("for a person")
	if err := tab.print(); err != nil {
		t.Fatal(err)
	}
	want := " 名前  B  C\n ab    ö\n x        " + long + "\n"
	if out.String() != want {
		t.Errorf("got %q\nwant %q", &out, want)
	}
}

// On a terminal a row is as wide as that, also where letters take two columns.
func TestTableOnTerminal(t *testing.T) {
	t.Parallel()
	master, slave := openTerminal(t, 20)
	tab := table{out: &results{out: slave}}
	tab.row("c1", strings.Repeat("説明", 20))
	tab.row("c2", "short")
	tab.legend("* explained")
	if err := tab.print(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	var got string
	for !strings.Contains(got, "explained") {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got += string(buf[:n])
	}
	if want := "c1  説明説明説明説…\r\nc2  short\r\n* explained\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// openTerminal makes a terminal of so many columns.
func openTerminal(t *testing.T, columns int) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(peer, "terminal")
	t.Cleanup(func() { _ = slave.Close() })
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// A straight chain is drawn straight, however long; branches are indented.
func TestPrintTree(t *testing.T) {
	t.Parallel()
	var ms []*chain.Manifest
	add := func(name, parent string) {
		m := &chain.Manifest{Checkpoint: name, UUID: name, Sequence: int64(len(ms) + 1), Created: time.Unix(int64(len(ms)), 0)}
		if parent != "" {
			m.Parent = &chain.CheckpointRef{Name: parent, UUID: parent}
		}
		ms = append(ms, m)
	}
	draw := func() string {
		var out bytes.Buffer
		printTree(&checkedWriter{w: &out}, chain.BuildTree(ms))
		return out.String()
	}
	for _, c := range [][2]string{{"a", ""}, {"b", "a"}, {"c", "b"}, {"d", "c"}} {
		add(c[0], c[1])
	}
	if got, want := draw(), "  a\n  b\n  c\n  d\n"; got != want {
		t.Errorf("a chain: got\n%swant\n%s", got, want)
	}
	for _, c := range [][2]string{{"b1", "b"}, {"b2", "b1"}, {"b3", "b"}, {"x", "b1"}} {
		add(c[0], c[1])
	}
	if got, want := draw(), "  a\n  b\n  ├─ b1\n  │  ├─ x\n  │  b2\n  ├─ b3\n  c\n  d\n"; got != want {
		t.Errorf("branches: got\n%swant\n%s", got, want)
	}
	add("z", "")
	add("y", "z")
	if got, want := draw(), "  ├─ a\n  │  b\n  │  ├─ b1\n  │  │  ├─ x\n  │  │  b2\n  │  ├─ b3\n  │  c\n  │  d\n  └─ z\n     y\n"; got != want {
		t.Errorf("two beginnings: got\n%swant\n%s", got, want)
	}
}

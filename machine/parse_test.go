// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// However a console comes in pieces, its beginning and its end are kept, and the pattern
// is found in a line once.
func TestConsole(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		all := make([]byte, r.IntN(3*(keptHead+keptTail)))
		for i := range all {
			all[i] = "abc\n\r"[r.IntN(5)]
		}
		all = append(all, "\r\nhost login: "...)
		c := newConsole(regexp.MustCompile("^host login: $"))
		for rest := all; len(rest) > 0; {
			n := min(1+r.IntN(200<<10), len(rest))
			c.take(rest[:n])
			rest = rest[n:]
		}
		if found, total := c.result(); found != "host login: " || total != int64(len(all)) {
			t.Errorf("%q, %d bytes", found, total)
		}
		log := c.log()
		if len(all) <= keptHead+keptTail {
			if !bytes.Equal(log, all) {
				t.Errorf("of %d bytes %d are kept, or others", len(all), len(log))
			}
		} else if !bytes.HasPrefix(log, all[:keptHead]) || !bytes.HasSuffix(log, all[len(all)-keptTail:]) || len(log) > keptHead+keptTail+100 {
			t.Errorf("of %d bytes %d are kept, or others", len(all), len(log))
		}
	}
}

// A line without end takes no memory.
func TestLongLine(t *testing.T) {
	t.Parallel()
	c := newConsole(regexp.MustCompile("login"))
	for range 100 {
		c.take(bytes.Repeat([]byte("x"), 64<<10))
	}
	if len(c.line) > maxLine || cap(c.line) > 2*maxLine {
		t.Errorf("a line of %d bytes is kept", len(c.line))
	}
	c.take([]byte("\nlogin"))
	if found, _ := c.result(); found != "login" {
		t.Errorf("after a long line %q is found", found)
	}
	// What draws over a line and over is followed by a prompt, too.
	c = newConsole(regexp.MustCompile("login: $"))
	c.take(append(bytes.Repeat([]byte("[*  ] waiting\r"), 64<<10), "login: "...))
	if found, _ := c.result(); !strings.HasSuffix(found, "login: ") {
		t.Errorf("behind what is drawn over %.80q is found", found)
	}
}

// An agent is up when it answers what it was asked just now, whatever came before.
func TestAgent(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	a := newAgent(ours)
	defer func() {
		_ = theirs.Close()
		_ = ours.Close()
		<-a.done
	}()
	go func() {
		in := bufio.NewReader(theirs)
		var late int64
		for n := 0; ; n++ {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			var asked struct {
				Execute   string
				Arguments struct{ ID int64 }
			}
			_ = json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &asked)
			switch {
			case asked.Execute == "guest-get-osinfo":
				_, _ = io.WriteString(theirs, `{"return":{"id":"debian"}}`+"\n")
			case n == 0:
				_, _ = io.WriteString(theirs, `{"return":1}`+"\n\xff"+`{"return":2}`+"\n") // to somebody else
			case n == 1: // it is not there yet, and answers all at once when it is
				late = asked.Arguments.ID
			default:
				_, _ = fmt.Fprintf(theirs, "\xff{\"return\":%d}\nnonsense\xff{\"return\":%d}\n", late, asked.Arguments.ID)
				late = asked.Arguments.ID
			}
		}
	}()
	<-a.up
	if a.says != `{"id":"debian"}` {
		t.Errorf("it says %q", a.says)
	}
}

func ppm(width, height int, body []byte) []byte {
	return append(fmt.Appendf(nil, "P6\n%d %d\n255\n", width, height), body...)
}

func FuzzPPM(f *testing.F) {
	f.Add(ppm(2, 1, []byte{1, 2, 3, 4, 5, 6}))
	f.Add(ppm(2, 1, []byte{1, 2, 3}))
	f.Add(ppm(100000, 100000, nil))
	f.Add([]byte("P6\n-1 2\n255\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := readPPM(bytes.NewReader(b))
		if err != nil {
			return
		}
		if n := img.Rect.Dx() * img.Rect.Dy(); n < 1 || 3*n > len(b) {
			t.Errorf("%d bytes are an image of %d pixels", len(b), n)
		}
		if encodePNG(img) == nil {
			t.Error("it is no PNG")
		}
	})
}

func TestScreensAreCompared(t *testing.T) {
	t.Parallel()
	screen := func(rows ...byte) *image.RGBA { // each of lineHeight pixels, of one shade each second pixel
		img := image.NewRGBA(image.Rect(0, 0, 100, lineHeight*len(rows)))
		for y := range img.Rect.Dy() {
			for x := range 100 {
				c := color.RGBA{A: 255}
				if x%3 == 0 {
					c.R = rows[y/lineHeight]
				}
				img.SetRGBA(x, y, c)
			}
		}
		return img
	}
	firmware := screen(0, 9, 8, 0)
	for name, c := range map[string]struct {
		img   *image.RGBA
		shows bool
	}{
		"the same":           {firmware, true},
		"goes on":            {screen(0, 9, 7, 6), true},
		"first line is gone": {screen(1, 2, 3, 4), false},
		"most is there":      {screen(0, 9, 8, 5), true},
		"another size":       {screen(0, 9, 8), false},
		"blank":              {screen(0, 0, 0, 0), false},
	} {
		if got := shows(c.img, firmware); got != c.shows {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !blank(screen(0, 0)) || blank(firmware) || alike(firmware, screen(0, 9, 8, 7)) || !alike(firmware, screen(0, 9, 8, 0)) {
		t.Error("screens are not told apart")
	}
}

// A command line is made of what QEMU knows, and of nothing that a definition says freely.
func TestCommand(t *testing.T) {
	t.Parallel()
	m := &domain.Machine{Arch: "x86_64", Machine: "pc-i440fx-2.1", CPUs: 64, Memory: 1 << 40, SCSI: "lsilogic", LocalTime: true,
		NICs: make([]string, 20), Left: []string{"the host's device 0000:01:02.0", "the TPM's state in /x"}}
	var disks []Disk
	for i := range 12 {
		bus := []string{"virtio", "sata", "scsi", "ide", "usb", "nvme", "xen"}[i%7]
		name := fmt.Sprintf("d%d", i)
		m.Disks = append(m.Disks, domain.MachineDisk{Target: name, Bus: bus, Serial: "a,b"})
		disks = append(disks, Disk{Name: name})
	}
	m.Disks[3].Order = 1
	c := &command{o: &Options{}, m: m, accel: TCG, ports: make(map[string]int)}
	c.base(func(name string) bool { return name == "pc" })
	c.disks(disks, make([]*os.File, len(disks)))
	c.network()
	text := strings.Join(c.args, "\n")
	for _, want := range []string{"pc,accel=tcg", "\n2048\n", "base=localtime", "lsi53c895a,id=scsi0", "ide-hd,bus=ide.0,unit=0,drive=disk3,bootindex=1\n", "nvme,drive=disk5,bootindex=1005,serial=d5", "hubport,id=net7,hubid=7"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not there:\n%s", want, text)
		}
	}
	for _, never := range []string{"a,b", "net8", "tap,", "user,"} {
		if strings.Contains(text, never) {
			t.Errorf("%q is there:\n%s", never, text)
		}
	}
	left := strings.Join(c.left, "\n")
	for _, want := range []string{"pc-i440fx-2.1", "0000:01:02.0", "MiB of its memory", "12 of its network interfaces", "xen"} {
		if !strings.Contains(left, want) {
			t.Errorf("%q is not told: %s", want, left)
		}
	}
	if strings.Contains(left, "TPM") {
		t.Errorf("the TPM is left out: %s", left)
	}
}

func TestUnfit(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*domain.Machine{
		"container": {OSType: "exe"}, "architecture": {OSType: "hvm", Arch: "s390x"}, "kernel": {OSType: "hvm", Kernel: true},
	} {
		var unfit *UnfitError
		if err := checkFit(m); !errors.As(err, &unfit) || unfit.WhatToDo == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newFirmware(&domain.Machine{EFI: true}, []byte("QFI\xfb"), make([]byte, 8192)); err == nil {
		t.Error("a firmware in a qcow2 image is taken, which could name files of the host")
	}
}

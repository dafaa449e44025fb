// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"errors"
	"fmt"
	"image"
	"time"
)

var noScreen *image.RGBA

const (
	lookEvery  = time.Second      // at the machine's state
	drawEvery  = 3 * time.Second  // at its screen
	keepEvery  = 15 * time.Second // a screen is kept, for when there is none any more
	settled    = 4                // screens that are alike, one after the other
	maxResets  = 3                // which some guests need, to set themselves up
	minimalOS  = 4 << 20          // what a guest reads of its disks at least, bytes
	firmwareIn = time.Minute      // in which the firmware's screen settles
)

// wait waits until the guest is up, or is known not to come up.
func (r *running) wait(ctx context.Context, firmware *image.RGBA) (*Result, error) {
	res := &Result{Accel: r.accel, Version: r.version, Left: r.c.left}
	limit := time.NewTimer(r.o.timeout(r.accel))
	defer limit.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	s := &screens{firmware: firmware}
	err := r.loop(ctx, res, s, limit.C, look.C)
	if err != nil {
		return nil, err
	}
	res.After, res.Read = time.Since(r.begun), r.served.read.Load()
	if img, err := r.monitor.screenshot(ctx); err == nil {
		s.last = img
	}
	res.Screen, res.Console = encodePNG(s.last), r.console.log()
	if !res.Up && res.ToDo == "" {
		res.ToDo = "look at the console and the screen that were kept; boot a restored copy by hand, and take an older checkpoint if it does not come up either"
	}
	return res, nil
}

func (r *running) loop(ctx context.Context, res *Result, s *screens, limit, look <-chan time.Time) error {
	var agentUp <-chan struct{}
	if r.agent != nil {
		agentUp = r.agent.up
	}
	first := r.console.first
	drawn := time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.qemu.Ended:
			return r.died(ctx, res, errors.New("it has ended"))
		case <-first:
			first, res.FirstLine = nil, time.Since(r.begun)
		case <-r.console.matched:
			line, _ := r.console.result()
			res.Up, res.Why = true, fmt.Sprintf("the console shows %.200q", line)
			return nil
		case <-agentUp:
			res.Up, res.Why, res.Agent = true, "the guest agent answers", r.agent.says
			return nil
		case <-limit:
			res.Why = fmt.Sprintf("it did not come up within %s: %s", r.o.timeout(r.accel), r.heard(res))
			return nil
		case e := <-r.monitor.events:
			if over := r.event(res, e); over {
				return nil
			}
		case <-look:
			if over, err := r.look(ctx, res); over || err != nil {
				return err
			}
			if every := r.drawEvery(); time.Since(drawn) < every {
				continue
			}
			drawn = time.Now()
			img, err := r.monitor.screenshot(ctx)
			if err != nil {
				continue // there is none while the guest changes it
			}
			if s.add(img) && r.o.Screen && r.served.read.Load() >= minimalOS {
				res.Up, res.Why = true, "its screen has settled on something that is not the firmware's (which is weaker than a pattern on the console or the guest agent)"
				return nil
			}
		}
	}
}

func (r *running) drawEvery() time.Duration {
	if r.o.Screen {
		return drawEvery
	}
	return keepEvery
}

// died is what is known of a guest whose QEMU has ended by itself: nothing, but what it
// has said and shown until then. With KVM it is tried once more, if it may be emulated.
func (r *running) died(ctx context.Context, res *Result, err error) error {
	err = r.explain(ctx, err)
	if ctx.Err() != nil || errors.Is(err, errKVM) && r.o.Accel == "" {
		return err
	}
	select { // it may have said something last
	case <-r.consoleEnded:
	case <-time.After(lookEvery):
	}
	res.Why, res.Broken = err.Error(), true
	res.ToDo = "drill again, and see to what the reason says: the log of the host tells whether it has killed QEMU for want of memory (--boot-memory)"
	return nil
}

// heard says what there was of the guest.
func (r *running) heard(res *Result) string {
	_, total := r.console.result()
	text := fmt.Sprintf("%d bytes on its console, %d MiB read of its disks", total, r.served.read.Load()>>20)
	if res.Resets > 0 {
		text += fmt.Sprintf(", %d resets", res.Resets)
	}
	return text
}

// event looks at what QEMU tells; over: the guest does not come up.
func (r *running) event(res *Result, e event) (over bool) {
	switch e.Event {
	case "RESET":
		if !e.Data.Guest {
			return false
		}
		res.Resets++
		if res.Resets > maxResets {
			res.Why = fmt.Sprintf("it has begun anew %d times: %s", res.Resets, r.heard(res))
			return true
		}
	case "SHUTDOWN":
		res.Why = fmt.Sprintf("it switched itself off (%.40s) before it was up: %s", e.Data.Reason, r.heard(res))
		return true
	case "GUEST_PANICKED":
		res.Why = "its kernel panicked"
		return true
	}
	return false
}

// look asks how the machine is.
func (r *running) look(ctx context.Context, res *Result) (over bool, err error) {
	if e := r.served.failed.Load(); e != nil {
		res.Why, res.Broken = "a disk could not be read or written: "+(*e).Error(), true
		res.ToDo = "see to what the reason says: imgbackup check tells of damage; --scratch gives more room"
		return true, nil
	}
	status, err := r.monitor.status(ctx)
	if err != nil {
		return true, r.died(ctx, res, err)
	}
	switch status {
	case "internal-error":
		if r.accel == KVM {
			return false, fmt.Errorf("%w: internal error", errKVM)
		}
		res.Why = "QEMU has met an internal error"
		return true, nil
	case "io-error": // and the disk says why, in a moment
		return false, nil
	case "shutdown":
		res.Why = "it switched itself off before it was up: " + r.heard(res)
		return true, nil
	case "guest-panicked":
		res.Why = "its kernel panicked"
		return true, nil
	}
	return false, nil
}

// screens are what the guest has shown, one after the other.
type screens struct {
	firmware, last *image.RGBA
	same           int
}

// add takes the next screen, and reports whether it has settled on something.
func (s *screens) add(img *image.RGBA) bool {
	if alike(s.last, img) {
		s.same++
	} else {
		s.same = 0
	}
	s.last = img
	return s.same >= settled-1 && !blank(img) && !shows(img, s.firmware)
}

// firmwareShows starts the machine without disks, and returns what its firmware leaves
// on the screen.
func firmwareShows(ctx context.Context, o *Options, accel string) (*image.RGBA, error) {
	bare := *o
	bare.Definition, bare.Agent, bare.Screen, bare.Pattern, bare.started = withoutDisks(o.Definition), false, false, nil, nil
	r, err := begin(ctx, &bare, accel, nil)
	if err != nil {
		return nil, err
	}
	defer r.end()
	s := &screens{}
	look := time.NewTicker(drawEvery)
	defer look.Stop()
	limit := time.NewTimer(firmwareIn)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit.C:
			return s.last, nil
		case <-look.C:
			img, err := r.monitor.screenshot(ctx)
			if err != nil {
				return nil, r.explain(ctx, err)
			}
			if s.add(img) {
				return img, nil
			}
		}
	}
}

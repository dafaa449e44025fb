// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/serve"
	"github.com/imgbackup/imgbackup/view"
	"github.com/imgbackup/imgbackup/virsh"
)

// look is how often libvirt is asked what the domain does.
const look = 2 * time.Second

// Run goes through all that is left of the recovery, and returns when the disks are in their files and
// the domain that was served is off, or when ctx ends, with its cause: then it is to be run
// again. A [serve.NotFilledError] says that disks cannot become complete.
func (r *Recovery) Run(ctx context.Context) (err error) {
	if r.record.Stage == Done {
		r.req.Tell(Event{Kind: EventRecovered, Path: r.req.Dir})
		return nil
	}
	if served, err := r.needsServer(ctx); err != nil {
		return err
	} else if !served {
		if err := r.complete(ctx); err != nil {
			return err
		}
		if r.record.Resetting {
			if err := r.start(ctx); err != nil {
				return err
			}
		}
		return r.finish()
	}
	if err := r.serve(ctx); err != nil {
		return err
	}
	return r.finish()
}

// needsServer reports whether anybody does: the copy, or a domain that still runs from it.
func (r *Recovery) needsServer(ctx context.Context) (bool, error) {
	if r.record.Stage != Complete {
		return true, nil
	}
	if r.req.Libvirt == nil {
		return false, nil
	}
	all, err := r.req.Libvirt.Domains(ctx)
	if err != nil || !slices.ContainsFunc(all, func(d virsh.Domain) bool { return d.UUID == r.record.DomainUUID && d.Active }) {
		return false, err
	}
	return r.isServed(ctx)
}

// serve serves the disks until they are in their files, and nobody is served any more.
func (r *Recovery) serve(ctx context.Context) (err error) {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }() // before anything is removed
	if err := r.define(ctx); err != nil {
		return err
	}
	if err := r.power(ctx, s); err != nil {
		return err
	}
	return r.fill(ctx, s)
}

// finish removes what nobody needs any more.
func (r *Recovery) finish() error {
	r.step("closed")
	if err := r.tidy(); err != nil {
		return err
	}
	r.step("tidied")
	if err := r.reach(Done); err != nil {
		return err
	}
	r.req.Tell(Event{Kind: EventRecovered, Path: r.req.Dir})
	return nil
}

// service is disks that are served.
type service struct {
	from    *view.Checkpoint
	cows    []*serve.Cow
	clients atomic.Int64
	stop    context.CancelFunc
	ended   chan error // the server's end
}

// open opens the disks and serves them.
func (r *Recovery) open(ctx context.Context) (_ *service, err error) {
	s := &service{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.from, err = view.Open(ctx, r.repo, r.m, nil, view.Options{Cache: r.req.Cache}); err != nil {
		return nil, err
	}
	var exports []nbd.Export
	for i, d := range s.from.Disks {
		cow, err := serve.OpenCow(s.from, d, r.targets[i].Path, r.req.Note)
		if err != nil {
			return nil, err
		}
		s.cows = append(s.cows, cow)
		e, err := serve.Export(ctx, s.from, d, cow, nil)
		if err != nil {
			return nil, err
		}
		exports = append(exports, e)
	}
	l, err := r.listen(ctx)
	if err != nil {
		return nil, err
	}
	o := r.req.Server
	o.Connections = max(o.Connections, 16, 2*len(exports))
	o.Clients = func(n int) { s.clients.Store(int64(n)) }
	server, err := nbd.NewServer(exports, o)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	var serving context.Context
	serving, s.stop = context.WithCancel(ctx)
	s.ended = make(chan error, 1)
	go func() {
		s.ended <- server.Serve(serving, l)
		_ = l.Close() // the server's end is what counts
	}()
	for i := range exports {
		r.req.Tell(Event{EventServing, exports[i].Name, r.socket()})
	}
	r.step("serving")
	return s, nil
}

// close ends the server and makes what guests have written durable.
func (s *service) close() (err error) {
	if s.stop != nil {
		s.stop()
		drop(s.ended) // it has ended because of that
	}
	for _, c := range s.cows {
		err = errors.Join(err, c.Close())
	}
	if s.from != nil {
		s.from.Close()
	}
	return err
}

// listen makes the socket, which only QEMU's user and ours can connect to.
func (r *Recovery) listen(ctx context.Context) (net.Listener, error) {
	if err := os.Mkdir(r.socketDir(), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	l, err := nbd.ListenUnix(ctx, r.socket())
	if err != nil {
		return nil, err
	}
	if uid := qemuUser(); r.req.Libvirt != nil && os.Geteuid() == 0 && uid > 0 {
		if err := os.Chown(r.socket(), uid, -1); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// qemuUser is the user that libvirt runs QEMU as on this distribution; 0: root, or nobody knows.
func qemuUser() int {
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err := strconv.Atoi(u.Uid)
			if err == nil {
				return uid
			}
		}
	}
	return 0
}

// define has libvirt take the domain in, if it does not have it.
func (r *Recovery) define(ctx context.Context) error {
	if r.req.Libvirt == nil {
		return nil
	}
	if r.record.Stage == Ready {
		a, err := r.identity()
		if err != nil {
			return err
		}
		// Somebody may have defined one meanwhile, which would be replaced.
		if err := r.checkFree(ctx, a.Name, a.UUID); err != nil {
			return err
		}
		if err := r.placeTPM(a); err != nil {
			return err
		}
		if err := r.reach(Defined); err != nil {
			return err
		}
	}
	if r.record.Stage != Defined {
		return nil
	}
	all, err := r.req.Libvirt.Domains(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(d virsh.Domain) bool { return d.UUID == r.record.DomainUUID }) {
		if err := r.req.Libvirt.Define(ctx, r.served()); err != nil {
			return err
		}
	}
	r.step("defining")
	r.req.Tell(Event{Kind: EventDefined, Path: r.served()})
	return nil
}

// identity is what the definition that was prepared is of.
func (r *Recovery) identity() (*dom.Domain, error) {
	text, err := sys.ReadBounded(r.served(), chain.MaxDomainXML)
	if err != nil {
		return nil, err
	}
	d, err := dom.Parse(text)
	if err == nil && d.UUID != r.record.DomainUUID {
		err = fmt.Errorf("%s is of a domain with the UUID %s, and %s was prepared", r.served(), d.UUID, r.record.DomainUUID)
	}
	return d, err
}

// power starts the domain, or lets one run on that the server's end has stopped.
func (r *Recovery) power(ctx context.Context, s *service) error {
	if r.req.Libvirt == nil {
		return nil
	}
	uuid := r.record.DomainUUID
	state, reason, err := r.req.Libvirt.State(ctx, uuid)
	if err != nil {
		return err
	}
	if state != virsh.ShutOff {
		served, err := r.isServed(ctx)
		if err != nil {
			return err
		}
		if !served {
			if r.record.Stage == Complete {
				return r.start(ctx) // it was started anew, from its files
			}
			return fmt.Errorf("%s runs, and its disks are not those that are served here: nothing is done about it", r.record.Name)
		}
		if !r.record.Resetting && !slices.ContainsFunc(s.cows, (*serve.Cow).Lost) {
			return r.goOn(ctx, state == virsh.Paused && reason == virsh.IOError)
		}
		r.req.Note(r.record.Name + " is reset: what it had written when its server ended may be lost, as in a power cut")
		next := r.record
		next.Resetting = true
		if err := r.write(next); err != nil {
			return err
		}
		if err := r.req.Libvirt.PowerOff(ctx, uuid); err != nil {
			return err
		}
		r.step("reset")
	} else if (r.req.NoStart || r.record.Stage == Complete) && !r.record.Resetting {
		return nil
	}
	return r.start(ctx)
}

// start starts the domain, be it for the first time or after it was reset, unless it runs.
func (r *Recovery) start(ctx context.Context) error {
	state, _, err := r.req.Libvirt.State(ctx, r.record.DomainUUID)
	if err != nil {
		return err
	}
	if state == virsh.ShutOff {
		if err := r.req.Libvirt.Start(ctx, r.record.DomainUUID); err != nil {
			return err
		}
		r.step("started")
		r.req.Tell(Event{Kind: EventRunning})
	}
	if !r.record.Resetting {
		return nil
	}
	next := r.record
	next.Resetting = false
	return r.write(next)
}

// goOn is of a domain that has outlived its server, which has stopped it if it wanted anything of that.
func (r *Recovery) goOn(ctx context.Context, stopped bool) error {
	if stopped {
		if err := r.req.Libvirt.Resume(ctx, r.record.DomainUUID); err != nil {
			return err
		}
	}
	r.req.Tell(Event{Kind: EventRunning})
	return nil
}

// isServed reports whether the domain runs with the disks that are served here.
func (r *Recovery) isServed(ctx context.Context) (bool, error) {
	text, err := r.req.Libvirt.Running(ctx, r.record.DomainUUID)
	if err != nil {
		return false, err
	}
	return r.names(text)
}

// names reports whether a definition names what is served here.
func (r *Recovery) names(definition []byte) (bool, error) {
	d, err := dom.Parse(definition)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(d.Disks, func(d dom.Disk) bool { return d.Socket == r.socket() }), nil
}

// fill copies the disks into their files beside the guest, and returns when both that is done and
// nobody is served any more.
func (r *Recovery) fill(ctx context.Context, s *service) error {
	filling, cancel := context.WithCancelCause(ctx)
	f := &serve.Filler{Repo: r.repo, Manifest: r.m, Cows: s.cows, Limit: r.req.Limit, Progress: r.req.Progress,
		Filled: func(c *serve.Cow) error {
			r.req.Tell(Event{EventFilled, c.Name(), c.Path()})
			return nil
		}}
	filled := make(chan error, 1)
	go func() { filled <- f.Run(filling) }()
	running := true
	defer func() {
		cancel(errEnded)
		if running {
			drop(filled) // likewise
		}
	}()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	var not *serve.NotFilledError
	told := false // that the definition names the files
	for {
		select {
		case err := <-filled:
			running = false
			if errors.As(err, &not) {
				r.req.Note(err.Error())
			} else if err != nil {
				return err
			}
		case err := <-s.ended:
			s.ended <- err
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the server has ended: %w", err)
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := r.goOnAgain(ctx); err != nil {
			r.note(err)
		}
		if running {
			continue
		}
		// While libvirt is not there the guest, which may be, is served.
		if not == nil && !told {
			if err := r.complete(ctx); err != nil {
				r.note(err)
				continue
			}
			told = true
		}
		off, err := r.isOff(ctx, s)
		switch {
		case err != nil:
			r.note(err)
		case off && not != nil:
			return not
		case off:
			return nil
		}
	}
}

// goOnAgain lets the domain run on if a request to its disks has stopped it: there may be room again, or a
// damaged repository may be mended; and QEMU's first request to a server that is there again only
// makes it connect.
func (r *Recovery) goOnAgain(ctx context.Context) error {
	if r.req.Libvirt == nil {
		return nil
	}
	state, reason, err := r.req.Libvirt.State(ctx, r.record.DomainUUID)
	if err == nil && state == virsh.Paused && reason == virsh.IOError {
		err = r.req.Libvirt.Resume(ctx, r.record.DomainUUID)
	}
	return err
}

// note tells of an error that may pass, once.
func (r *Recovery) note(err error) {
	if msg := err.Error(); msg != r.noted {
		r.req.Note(msg)
		r.noted = msg
	}
}

var errEnded = errors.New("the recovery has ended")

// complete lets the definition name the files, which are the disks now.
func (r *Recovery) complete(ctx context.Context) error {
	if r.record.Stage != Complete {
		if err := r.reach(Complete); err != nil {
			return err
		}
	}
	if err := r.redefine(ctx); err != nil {
		return err
	}
	r.req.Tell(Event{Kind: EventComplete, Path: r.req.Dir})
	return nil
}

// redefine lets the domain start from the files the next time. What somebody has changed in it meanwhile
// stays, and one that names the files already is left alone.
func (r *Recovery) redefine(ctx context.Context) error {
	if r.req.Libvirt == nil {
		return nil
	}
	all, err := r.req.Libvirt.Domains(ctx)
	if err != nil {
		return err
	}
	file := r.definition()
	if slices.ContainsFunc(all, func(d virsh.Domain) bool { return d.UUID == r.record.DomainUUID }) {
		text, err := r.req.Libvirt.Definition(ctx, r.record.DomainUUID)
		if err != nil {
			return err
		}
		if served, err := r.names(text); err != nil || !served {
			return err
		}
		file = r.changed()
		if err := r.writeChanged(text); err != nil {
			return err
		}
	}
	if err := r.req.Libvirt.Define(ctx, file); err != nil {
		return err
	}
	r.step("redefined")
	return nil
}

// writeChanged writes a definition, as libvirt has it, with the files as its disks.
func (r *Recovery) writeChanged(text []byte) error {
	files, err := sys.ReadBounded(r.definition(), chain.MaxDomainXML)
	if err != nil {
		return err
	}
	changed, err := dom.Unserve(text, files, r.socket())
	if err != nil {
		return err
	}
	return r.writeDefinition(r.changed(), changed)
}

// isOff reports whether nobody needs the server any more.
func (r *Recovery) isOff(ctx context.Context, s *service) (bool, error) {
	if r.req.Libvirt == nil {
		return s.clients.Load() == 0, nil
	}
	state, _, err := r.req.Libvirt.State(ctx, r.record.DomainUUID)
	if err != nil || state == virsh.ShutOff {
		return err == nil, err
	}
	served, err := r.isServed(ctx)
	return err == nil && !served, err
}

// drop waits for an end that was asked for.
func drop(end <-chan error) {
	for range end {
		return
	}
}

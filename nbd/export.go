// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Device is the content of an export. All methods of a device are called from
// several goroutines at once and must return soon after ctx has ended. Offsets
// and lengths are bytes and lie within the export's size.
type Device interface {
	// ReadAt fills p, at most 1 MiB, with the bytes at off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Writer is what a [Device] may be besides: then its export is writable, unless it
// says otherwise. What a call has written is seen by every later read of every
// connection.
type Writer interface {
	// WriteAt writes p, at most 1 MiB.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// WriteZeroes makes a range read as zeros; mayTrim: it may become a hole.
	WriteZeroes(ctx context.Context, off, length int64, mayTrim bool) error
	// Trim says that a range is no longer needed. It may do nothing.
	Trim(ctx context.Context, off, length int64) error
	// Flush returns when all that calls which have returned have written is durable.
	Flush(ctx context.Context) error
}

// Extent is a range of an export with the flags that a context gives it.
type Extent struct {
	Start, End int64 // bytes, half open, Start < End
	Flags      uint32
}

// Context is a named statement about the ranges of an export: see [BaseAllocation]
// and [DirtyBitmapPrefix].
type Context struct {
	Name string // NAMESPACE:LEAF, at most 4096 bytes of UTF-8
	// Extents yields the extents that overlap [start, end), in order and without
	// overlap, from several goroutines at once. What it leaves out has no flag. An
	// error comes last. It may be stopped at any extent.
	Extents func(ctx context.Context, start, end int64) iter.Seq2[Extent, error]
}

// RunsContext is a context in which the runs of a set have the given flags. runs
// is asked for the part of the set that overlaps [start, end); it may give more.
func RunsContext(name string, flags uint32, runs func(ctx context.Context, start, end int64) bitmapstore.Runs) Context {
	return Context{Name: name, Extents: func(ctx context.Context, start, end int64) iter.Seq2[Extent, error] {
		return func(yield func(Extent, error) bool) {
			set := runs(ctx, start, end)
			if set == nil {
				return
			}
			for r, err := range set {
				if err != nil {
					yield(Extent{}, err)
					return
				}
				if r.End <= start {
					continue
				}
				if r.Start >= end || !yield(Extent{Start: r.Start, End: r.End, Flags: flags}, nil) {
					return
				}
			}
		}
	}}
}

// Allocation is the context base:allocation of a device that is known to be zeros where
// zeros says so: holes. zeros is as in [RunsContext].
func Allocation(zeros func(ctx context.Context, start, end int64) bitmapstore.Runs) Context {
	return RunsContext(BaseAllocation, StateHole|StateZero, zeros)
}

// DirtyBitmap is the context qemu:dirty-bitmap:NAME of a set of changed bytes.
func DirtyBitmap(name string, runs func(ctx context.Context, start, end int64) bitmapstore.Runs) Context {
	return RunsContext(DirtyBitmapPrefix+name, StateDirty, runs)
}

// Export is a device under a name.
type Export struct {
	Name        string // at most 4096 bytes of UTF-8; a client that names none gets the only export
	Description string // for people; may be empty
	Size        int64  // bytes
	Device      Device
	ReadOnly    bool // even though the device is a [Writer]
	// Lend, if it is set, may return what [Device.ReadAt] would read, at most 1 MiB, as it lies
	// in the device's memory: in pieces, in their order, which stay as they are until giveBack is
	// called, once they have been sent, however long the client takes. None: ReadAt is asked.
	Lend     func(ctx context.Context, off int64, length int) (pieces [][]byte, giveBack func())
	Contexts []Context
	// BlockSize is the unit in which the device works best, bytes: a power of two
	// from 512 to 32 MiB; 0: 64 KiB.
	BlockSize int64
}

func (e *Export) writer() Writer {
	if e.ReadOnly {
		return nil
	}
	w, _ := e.Device.(Writer)
	return w
}

func (e *Export) check() error {
	switch {
	case !validString(e.Name) || !validString(e.Description):
		return fmt.Errorf("export %.80q: its name or description is no UTF-8 text of at most %d bytes", e.Name, maxString)
	case e.Size < 0:
		return fmt.Errorf("export %s: size %d", e.Name, e.Size)
	case e.Device == nil:
		return fmt.Errorf("export %s: no device", e.Name)
	case e.BlockSize != 0 && (e.BlockSize < 512 || e.BlockSize > maxPayload || e.BlockSize&(e.BlockSize-1) != 0):
		return fmt.Errorf("export %s: block size %d", e.Name, e.BlockSize)
	case len(e.Contexts) > maxContexts:
		return fmt.Errorf("export %s: %d contexts, and %d are possible", e.Name, len(e.Contexts), maxContexts)
	}
	seen := make(map[string]bool)
	for _, c := range e.Contexts {
		namespace, _, ok := strings.Cut(c.Name, ":")
		if !ok || namespace == "" || !validString(c.Name) || seen[c.Name] || c.Extents == nil {
			return fmt.Errorf("export %s: context %.80q is not valid, or there twice", e.Name, c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

func validString(s string) bool {
	return len(s) <= maxString && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// DeviceError says that a device has failed a request of a client.
type DeviceError struct {
	Export         string
	What           string // "read", "write", …
	Offset, Length int64
	Err            error
}

func (e *DeviceError) Error() string {
	if e.Length == 0 {
		return fmt.Sprintf("export %s: %s: %v", e.Export, e.What, e.Err)
	}
	return fmt.Sprintf("export %s: %s of bytes %d to %d: %v", e.Export, e.What, e.Offset, e.Offset+e.Length-1, e.Err)
}

func (e *DeviceError) Unwrap() error { return e.Err }

// errClient marks a breach of the protocol by the other side.
var errClient = errors.New("the client breaks the protocol")

func breach(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errClient, fmt.Sprintf(format, args...))
}

// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive/known"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// WriterOptions are the settings of a backup session; the zero value is good.
type WriterOptions struct {
	Level      Level
	Workers    int    // goroutines that read, hash and compress; 0: two more than CPUs, at most 16, by Memory
	SkipVerify bool   // do not decode each frame again to compare it with the data
	PackSize   int64  // target size of a pack, bytes, 64 KiB to 256 MiB; 0: 32 MiB
	TempDir    string // for maps and bitmaps too large for memory; "": [spool.TempDir]
	// Vouched: of an older pack whose SHA-256 the store itself keeps, one chunk is
	// read back before others count, and not each. In an encrypted repository each is.
	Vouched bool
	// Known is a folder that this machine keeps, for what chunks the repository has, of
	// at most KnownLimit bytes; "": only the newest are known.
	Known      string
	KnownLimit int64
	Memory     memory.Budget // decides how much is in hand at once
	// Contents are small objects of an encrypted repository that need not be stored again.
	Contents Contents
	// IndexEvery is how many bytes of packs go by, at least, before they are listed
	// in an index while the session goes on; 0: 64 MiB.
	IndexEvery int64
	Indexing   Indexing // of what the session stores
}

// DiskStats counts what one map holds; guest bytes unless said.
type DiskStats struct {
	Data   int64 // data
	Zero   int64 // zeros: recorded ones of a delta; all that is not data of a full map
	Stored int64 // bytes of frames added to packs
	Reused int64 // of Data: what chunks hold that were there before
	Chunks int64 // frames added to packs
	Heat   Heat  // of a delta map
}

func (s *DiskStats) add(t DiskStats) {
	s.Data += t.Data
	s.Zero += t.Zero
	s.Stored += t.Stored
	s.Reused += t.Reused
	s.Chunks += t.Chunks
	for i := range s.Heat {
		s.Heat[i] += t.Heat[i]
	}
}

// Stats sums up a session.
type Stats struct {
	DiskStats
	Packs     int64    // packs stored
	PackBytes int64    // their length
	Notes     []string // what went wrong and was got round, for people
}

// Writer is one backup session: it takes the content of disks and stores packs as
// they fill, from time to time an index of them, so that the session after one that
// was killed goes on from there, and in Finish the maps. Finish or Abort must end it.
// Its methods may be called concurrently, except Finish and Abort with others.
//
// Data goes through a fixed number of cells in flight: workers run the producers,
// hash, compress and verify; one goroutine takes the results in the order of Add,
// so that the same input gives the same packs; two store packs. The first error
// stops all of it and is what every later call returns.
type Writer struct {
	store  objstore.Store
	keys   *crypt.Keys // nil: the repository is plain
	o      WriterOptions
	ctx    context.Context
	cancel context.CancelCauseFunc

	adding sync.RWMutex // held for writing while the session ends
	ended  bool
	free   chan *cell // what is not in flight
	jobs   chan *cell // to the workers
	order  chan *cell // to the packer
	wg     sync.WaitGroup

	table   dedupTable
	packs   sessionPacks
	fetcher *Fetcher
	packer  packer
	index   indexBuilder
	tables  packTables
	known   *known.Table // nil: this machine keeps none

	indexLost atomic.Bool  // which was noted
	expected  atomic.Int64 // guest bytes; 0: nobody knows

	mu    sync.Mutex // guards what is below
	maps  []*MapWriter
	stats Stats
	notes int
}

// Expect tells how many of the guest's bytes [MapWriter.Add] will be given, at most: where the store is far
// away, the last packs become smaller, so that it has them soon after the last byte.
func (w *Writer) Expect(bytes int64) { w.expected.Store(bytes) }

var errAborted = errors.New("the backup was given up")

// maxNotes bounds Stats.Notes.
const maxNotes = 50

// NewWriter begins a session. Indexes that can't be read cost deduplication and
// leave a note; only a cancelled context or wrong options are errors.
func NewWriter(ctx context.Context, store objstore.Store, o WriterOptions) (*Writer, error) {
	if o.Workers == 0 {
		// Two more than can compute at once, since some wait for the disk.
		o.Workers = o.Memory.Count(min(runtime.GOMAXPROCS(0)+2, 16), 2)
	}
	if o.PackSize == 0 {
		o.PackSize = defaultPackSize
	}
	if o.Workers < 0 || o.Workers > 256 || o.PackSize < minPackSize || o.PackSize > maxPackSize {
		return nil, fmt.Errorf("archive: %d workers or packs of %d bytes are out of range", o.Workers, o.PackSize)
	}
	if o.TempDir == "" {
		o.TempDir = spool.TempDir()
	}
	if o.IndexEvery == 0 {
		o.IndexEvery = indexEvery
	}
	w := &Writer{store: store, keys: KeysOf(store), o: o}
	if w.keys != nil {
		w.o.Vouched = false // of what another host has put into a pack its table proves nothing
	}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.packs.init(store, w.note)
	w.tables.store = store
	w.table.spill.Dir = o.TempDir
	if w.table.most = dedupSlots; o.Memory.Part(4, 0) < 3 {
		w.table.most /= 4
	}
	if err := w.learn(); err != nil {
		w.closeKnown()
		w.cancel(err)
		return nil, err
	}
	w.fetcher = NewFetcher(store, FetcherOptions{Memory: o.Memory})
	if err := w.start(); err != nil {
		w.cancel(err)
		w.wg.Wait()
		w.closeKnown()
		return nil, err
	}
	return w, nil
}

// start makes the pipeline.
func (w *Writer) start() error {
	inFlight := 2*w.o.Workers + 4
	w.free = make(chan *cell, inFlight)
	w.jobs = make(chan *cell, inFlight)
	w.order = make(chan *cell, inFlight)
	for range inFlight {
		w.free <- &cell{done: make(chan struct{}, 1)}
	}
	var workers []*worker
	for range w.o.Workers {
		k, err := newWorker(w)
		if err != nil {
			return err
		}
		workers = append(workers, k)
	}
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		return err
	}
	ienc, err := newEncoder(LevelFastest, false)
	if err != nil {
		return err
	}
	w.index = indexBuilder{keys: w.keys, indexing: w.o.Indexing, tempDir: w.o.TempDir, every: w.o.IndexEvery, enc: ienc, now: time.Now}
	w.packer.init(w, enc)
	for _, k := range workers {
		w.wg.Go(k.run)
	}
	w.wg.Go(w.packer.run)
	return nil
}

// fail stops the session; the first error counts.
func (w *Writer) fail(err error) { w.cancel(err) }

// err returns what stopped the session.
func (w *Writer) err() error {
	if w.ctx.Err() == nil {
		return nil
	}
	return context.Cause(w.ctx)
}

func (w *Writer) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.notes++; w.notes <= maxNotes {
		w.stats.Notes = append(w.stats.Notes, fmt.Sprintf(format, args...))
	}
}

// NewMap begins the map of one disk of size bytes. In a full map what is left out
// is zero, in a delta it is the parent's. An invalid name or size is what the
// map's methods return.
func (w *Writer) NewMap(disk string, size int64, full bool) *MapWriter {
	m := &MapWriter{w: w, closed: make(chan struct{}), full: full, size: size}
	m.build, m.bad = newMapBuilder(disk, size, full, w.packer.enc, w.o.TempDir, w.keys)
	w.mu.Lock()
	w.maps = append(w.maps, m)
	w.mu.Unlock()
	return m
}

func (w *Writer) put(ctx context.Context, key string, name Digest, body objstore.Body) error {
	replaced, err := putObject(ctx, w.store, key, name, body)
	if replaced != nil && err == nil {
		w.note("a damaged object was replaced: %v", replaced)
	}
	return err
}

// Flush begins to store the pack that is being filled: nothing is added for now, and what
// follows need not wait for that.
func (w *Writer) Flush(ctx context.Context) error {
	select {
	case c := <-w.free:
		*c = cell{flush: true, done: c.done, results: c.results[:0], out: c.out[:0]}
		return w.send(c)
	case <-w.ctx.Done():
		return w.err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Finish waits for all that was added, stores the last pack, the maps and the
// index, and ends the session, with or without an error. The maps come in the
// order of NewMap. An index that can't be stored leaves a note.
func (w *Writer) Finish(ctx context.Context) ([]MapRef, Stats, error) {
	stop := context.AfterFunc(ctx, func() { w.fail(context.Cause(ctx)) })
	defer stop()
	defer w.Abort()
	for _, m := range w.maps {
		if err := m.sendClose(ctx); err != nil {
			return nil, Stats{}, err
		}
	}
	w.end()
	if err := w.err(); err != nil {
		return nil, Stats{}, err
	}
	refs, err := w.storeLast()
	if err != nil {
		return nil, Stats{}, err
	}
	if err := w.table.lost(); err != nil {
		w.note("not all that this backup has stored was known to it, so more may be stored than was new: %v", err)
	}
	if err := w.err(); err != nil {
		return nil, Stats{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.notes > maxNotes {
		w.stats.Notes = append(w.stats.Notes, fmt.Sprintf("and %d more", w.notes-maxNotes))
	}
	return refs, w.stats, nil
}

// Abort ends the session and waits until nothing of it runs. Packs that are stored
// stay. After Finish or Abort it does nothing.
func (w *Writer) Abort() {
	w.fail(errAborted)
	w.end()
	for _, m := range w.maps {
		if m.build != nil {
			m.build.close()
		}
	}
	w.packer.spool.close()
	w.index.close()
	w.closeKnown()
}

// end stops the intake and waits for the pipeline.
func (w *Writer) end() {
	w.adding.Lock()
	if !w.ended {
		w.ended = true
		close(w.jobs)
		close(w.order)
	}
	w.adding.Unlock()
	w.wg.Wait()
}

// storeLast stores the maps, and beside them the last index: both name packs, which are stored, and
// neither the other. In a store that is near nothing is won by that, and one comes after the other.
func (w *Writer) storeLast() ([]MapRef, error) {
	var beside sync.WaitGroup
	defer beside.Wait()
	rest, lost := w.index.rest()
	if w.isNear() {
		refs, err := w.storeMaps()
		if err != nil {
			w.fail(err)
		}
		w.storeIndex(lost, rest)
		return refs, err
	}
	beside.Go(func() { w.storeIndex(lost, rest) })
	refs, err := w.storeMaps()
	if err != nil {
		w.fail(err) // which ends the other
	}
	return refs, err
}

func (w *Writer) isNear() bool { return objstore.Connections(w.store) == 0 }

// mapsAtOnce is how many maps are stored at once: a far store answers each as late as all.
const mapsAtOnce = 8

func (w *Writer) storeMaps() ([]MapRef, error) {
	refs := make([]MapRef, 0, len(w.maps))
	var puts errgroup.Group
	puts.SetLimit(mapsAtOnce)
	if w.isNear() {
		puts.SetLimit(1)
	}
	for _, m := range w.maps {
		built, err := m.build.seal(len(m.packs), func(yield func(Ref) bool) {
			for _, n := range m.packs {
				if !yield(w.packs.ref(n)) {
					return
				}
			}
		})
		if err != nil {
			return nil, errors.Join(err, puts.Wait())
		}
		puts.Go(func() error {
			if err := w.put(w.ctx, MapKey(built.ref.Name), built.ref.Name, built.body); err != nil {
				return fmt.Errorf("store the map of disk %s: %w", m.build.head.disk, err)
			}
			return nil
		})
		refs = append(refs, built.ref)
		w.stats.add(m.stats)
	}
	if err := puts.Wait(); err != nil {
		return nil, err
	}
	return refs, nil
}

// list puts a pack that is stored into an index. Indexes that are due are stored beside
// what goes on. It may be called only while the pipeline is at work.
func (w *Writer) list(pack Ref, chunks []PackChunk) {
	due, err := w.index.add(pack, chunks)
	if err != nil || len(due) > 0 {
		w.wg.Go(func() { w.storeIndex(err, due...) })
	}
}

// storeIndex stores indexes, unless err says that there is none. They are a help and no
// part of the backup.
func (w *Writer) storeIndex(err error, parts ...*spool.Spool) {
	for _, part := range parts {
		if part != nil {
			err = errors.Join(err, w.storePart(part))
		}
	}
	if err != nil && w.indexLost.CompareAndSwap(false, true) {
		w.note("an index of this backup is not stored, so later ones may store more than is new: %v", err)
	}
}

func (w *Writer) storePart(part *spool.Spool) error {
	defer part.Close()
	name, err := hashBody(part)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := w.put(w.ctx, IndexKey(w.o.Indexing.folder(), name), name, part); err != nil {
		return fmt.Errorf("store the index: %w", err)
	}
	return nil
}

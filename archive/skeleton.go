// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/objstore"
)

var errSkeleton = errors.New("archive: not built yet")

// WriterOptions are the settings of a backup session; the zero value is good.
type WriterOptions struct {
	Level      Level
	Workers    int         // goroutines that read, hash and compress; 0: one per CPU, at most 16
	SkipVerify bool        // do not decode each frame again to compare it with the data
	PackSize   int64       // target size of a pack, bytes; 0: 32 MiB
	TempDir    string      // for maps and bitmaps too large for memory; "": os.TempDir
	Progress   func(Event) // called often, from one goroutine at a time; must not block; may be nil
}

// Event is a step of progress on one disk.
type Event struct {
	Disk   string
	Offset int64 // everything given before this guest offset is done
	Data   int64 // guest bytes that were data so far
	Stored int64 // bytes of new frames so far
}

// DiskStats counts what one map holds, guest bytes unless said.
type DiskStats struct {
	Data   int64 // data
	Zero   int64 // zeros: recorded ones of a delta; all that is not data of a full map
	Stored int64 // bytes of frames added to packs
	Reused int64 // data that an existing chunk holds already
	Chunks int64 // frames added to packs
}

// Stats sums up a session.
type Stats struct {
	DiskStats
	Packs     int64    // packs stored
	PackBytes int64    // their length
	Notes     []string // what went wrong and was got round, for people
}

// Piece is guest data that a producer found. One of Zero, Data and Reuse is set;
// Reuse with Data means: reference Reuse, or store Data where its pack is gone.
type Piece struct {
	Offset, Length int64
	Zero           bool
	Data           []byte  // Length bytes, not kept after produce's cell is done
	Digest         *Digest // of Data, if known
	Reuse          *Entry  // covers the piece; its chunk is referenced as it is
}

// Writer is one backup session.
type Writer struct{}

// NewWriter begins a session. Finish or Abort must end it.
func NewWriter(ctx context.Context, store objstore.Store, o WriterOptions) (*Writer, error) {
	return nil, errSkeleton
}

// NewMap begins the map of one disk.
func (w *Writer) NewMap(disk string, size int64, full bool) *MapWriter { return nil }

// PutBitmap stores a bitmap.
func (w *Writer) PutBitmap(ctx context.Context, h bitmapstore.Header, r bitmapstore.Runs) (Ref, error) {
	return Ref{}, errSkeleton
}

// Finish stores what is left; the maps come in the order of NewMap.
func (w *Writer) Finish(ctx context.Context) ([]MapRef, Stats, error) {
	return nil, Stats{}, errSkeleton
}

// Abort ends the session; after Finish it does nothing.
func (w *Writer) Abort() {}

// MapWriter takes the content of one disk.
type MapWriter struct{}

// Add schedules one cell.
func (m *MapWriter) Add(ctx context.Context, off, length int64, produce func(ctx context.Context, buf []byte) ([]Piece, error)) error {
	return errSkeleton
}

// Zero records zeros.
func (m *MapWriter) Zero(off, length int64) error { return errSkeleton }

// Close waits until all that was added is in packs.
func (m *MapWriter) Close(ctx context.Context) (DiskStats, error) { return DiskStats{}, errSkeleton }

// Map is a stored map, opened for reading. It is safe for concurrent use.
type Map struct{}

// OpenMap fetches and proves a map's directory and header.
func OpenMap(ctx context.Context, store objstore.Store, ref MapRef) (*Map, error) {
	return nil, errSkeleton
}

// Size is the disk's virtual size, bytes.
func (m *Map) Size() int64 { return 0 }

// Full tells whether what the map leaves out is zero (else: as in the parent).
func (m *Map) Full() bool { return false }

// Disk is the name of the disk.
func (m *Map) Disk() string { return "" }

// Ref is what the map was opened by.
func (m *Map) Ref() MapRef { return MapRef{} }

// Packs lists the packs that the map names. The slice must not be changed.
func (m *Map) Packs() []Ref { return nil }

// Entries yields the runs that overlap [start, end), clipped to it, in order.
func (m *Map) Entries(ctx context.Context, start, end int64) iter.Seq2[Entry, error] { return nil }

// Replay merges maps, newest first.
func Replay(ctx context.Context, maps []*Map, start, end int64) iter.Seq2[Entry, error] { return nil }

// WriteMap stores a map made of entries, in the way of a synthetic full.
func WriteMap(ctx context.Context, store objstore.Store, disk string, size int64, full bool, entries iter.Seq2[Entry, error]) (MapRef, error) {
	return MapRef{}, errSkeleton
}

// FetcherOptions are the settings of a Fetcher; the zero value is good.
type FetcherOptions struct {
	Parallel   int   // requests (and decoders) at work at once; 0: 4, or one per CPU if there are more, at most 16
	MaxGap     int64 // bytes of a pack read for nothing to save a request; 0: 256 KiB
	MaxRequest int64 // bytes of one request; 0: 8 MiB
}

// Fetcher reads and proves chunks. It is safe for concurrent use.
type Fetcher struct{}

// NewFetcher returns a fetcher.
func NewFetcher(store objstore.Store, o FetcherOptions) *Fetcher { return nil }

// Chunk returns the whole chunk of e, proven, in buf if it is large enough (GridSize always is).
func (f *Fetcher) Chunk(ctx context.Context, e Entry, buf []byte) ([]byte, error) {
	return nil, errSkeleton
}

// Batch fetches the chunks of entries; fn gets the indexes of the entries that use
// the chunk, from several goroutines at once. Zero entries are skipped.
func (f *Fetcher) Batch(ctx context.Context, entries []Entry, fn func(indexes []int, chunk []byte) error) error {
	return errSkeleton
}

// EntryError says which entries of a batch could not be had.
type EntryError struct {
	Indexes []int
	Entry   Entry // the first of them
	Err     error
}

func (e *EntryError) Error() string { return e.Err.Error() }
func (e *EntryError) Unwrap() error { return e.Err }

// DecodeFrame decodes exactly one zstd frame of at most GridSize bytes and proves it.
func DecodeFrame(frame, buf []byte, want Digest) ([]byte, error) { return nil, errSkeleton }

// PackChunk is one line of a pack's table.
type PackChunk struct {
	FrameOffset int64
	FrameLength int32
	Length      int32 // raw
	Chunk       Digest
}

// ReadPackTable reads and checks a pack's table.
func ReadPackTable(ctx context.Context, store objstore.Store, pack Ref) ([]PackChunk, error) {
	return nil, errSkeleton
}

// VerifyPack checks that a pack is there with its length (Length < 0: unknown); deep:
// that its bytes hash to its name and every frame decodes to its digest.
func VerifyPack(ctx context.Context, store objstore.Store, pack Ref, deep bool) error {
	return errSkeleton
}

// VerifyMap is the same for a map. The directory and the header are always proven.
func VerifyMap(ctx context.Context, store objstore.Store, ref MapRef, deep bool) error {
	return errSkeleton
}

// VerifyObject is the same for any key that ParseKey knows; length < 0: unknown.
func VerifyObject(ctx context.Context, store objstore.Store, key string, length int64, deep bool) error {
	return errSkeleton
}

// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"errors"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

var errNotYet = errors.New("not implemented")

func OpenChain(path string, format Format, o OpenOptions) (*Chain, error) { return nil, errNotYet }
func (c *Chain) Size() int64                                              { return c.Layers[0].Size }
func (c *Chain) ReadAt(p []byte, off int64) (int, error)                  { return 0, errNotYet }
func (c *Chain) Extents(start, end int64) iter.Seq2[Extent, error]        { return nil }
func (c *Chain) LayerExtents(layer int, start, end int64) iter.Seq2[Extent, error] {
	return nil
}
func (c *Chain) Allocated(layer int) bitmapstore.Runs { return nil }
func (c *Chain) Close() error                         { return nil }
func (l *Layer) Stat() (FileID, error)                { return FileID{}, errNotYet }
func (l *Layer) Files() []*File                       { return nil }
func (l *Layer) HeaderDigest() [32]byte               { return [32]byte{} }
func (f *File) Path() string                          { return f.path }
func (f *File) Stat() (FileID, error)                 { return FileID{}, errNotYet }
func (f *File) PathStat() (FileID, error)             { return FileID{}, errNotYet }

// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"context"
	"slices"
	"sync"
)

// keptBytes is how much of what was decoded is kept, beside what is in use: reads go on where
// others ended, from several goroutines at once.
const keptBytes = 64 << 20

// chunkKey names a chunk of an image.
type chunkKey struct {
	layer int32
	index int64
}

// chunkCache keeps chunks that were decoded last. One is decoded at a time, once for all that
// wait for it.
type chunkCache struct {
	decoding chan struct{} // holds one thing while a chunk is decoded

	mu    sync.Mutex
	kept  []keptChunk // the one that was used last comes last
	bytes int
}

type keptChunk struct {
	key  chunkKey
	data []byte
}

func newChunkCache() chunkCache { return chunkCache{decoding: make(chan struct{}, 1)} }

// get returns a chunk, which nobody changes.
func (c *chunkCache) get(ctx context.Context, key chunkKey, decode func() ([]byte, error)) ([]byte, error) {
	if data := c.look(key); data != nil {
		return data, nil
	}
	select {
	case c.decoding <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.decoding }()
	if data := c.look(key); data != nil {
		return data, nil
	}
	c.makeRoom()
	data, err := decode()
	if err == nil {
		c.keep(key, data)
	}
	return data, err
}

func (c *chunkCache) look(key chunkKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.kept, func(k keptChunk) bool { return k.key == key })
	if i < 0 {
		return nil
	}
	found := c.kept[i]
	c.kept = append(slices.Delete(c.kept, i, i+1), found)
	return found.data
}

// makeRoom forgets what was used longest ago.
func (c *chunkCache) makeRoom() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.kept) > 0 && c.bytes > keptBytes/2 {
		c.bytes -= len(c.kept[0].data)
		c.kept = slices.Delete(c.kept, 0, 1)
	}
}

func (c *chunkCache) keep(key chunkKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, keptChunk{key, data})
	c.bytes += len(data)
}

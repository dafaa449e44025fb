// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// longChain is a repository with a chain of a full and depth incrementals, each
// with one new chunk, and with much else in it. identity is the file of an admin's, if it is
// encrypted.
func longChain(t *testing.T, depth int, encrypt encrypted) (store objstore.Store, content, identity []byte) {
	t.Helper()
	ctx := t.Context()
	store = objstore.NewMem()
	var o chain.InitOptions
	if encrypt {
		o.Encrypt = func(ctx context.Context, store objstore.Store, id string) (*chain.Encryption, *chain.Access, error) {
			ring, joined, err := keys.Make(ctx, store, id, keys.Features{HideNames: true}, []keys.Joining{{Name: "admin", Role: keys.Admin}})
			if err != nil {
				return nil, nil, err
			}
			for i := range 20 { // others, whose files nobody needs who is not them
				if _, err := ring.Add(ctx, keys.Joining{Name: fmt.Sprintf("host%d", i), Role: keys.Host}); err != nil {
					return nil, nil, err
				}
			}
			identity = identityFileText(ring, &joined[0])
			return &chain.Encryption{Scheme: chain.EncryptionScheme, RosterKey: ring.RosterKey()}, accessOf(ring), nil
		}
	}
	repo, err := chain.Init(ctx, store, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2500 {
		key := fmt.Sprintf("packs/00/%064x.zst", i)
		if err := store.Put(ctx, key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
	}
	content = make([]byte, (depth+1)*64<<10)
	var maps []archive.MapRef
	for i := range depth + 1 {
		w, err := archive.NewWriter(ctx, repo.Store, archive.WriterOptions{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		off := i * 64 << 10
		part := content[off:][:64<<10]
		for j := range part {
			part[j] = byte(i + j)
		}
		m := w.NewMap("vda", int64(len(content)), i == 0)
		err = m.Add(ctx, int64(off), int64(len(part)), func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: int64(off), Length: int64(len(part)), Data: part}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		refs, _, err := w.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		maps = append(refs, maps...)
		manifest := &chain.Manifest{
			Kind: chain.KindArchive, Domain: domain, Host: chain.Host{Name: "host"}, Checkpoint: fmt.Sprintf("c%d", i),
			UUID: chain.NewUUID(), Sequence: int64(i + 1), Created: time.Now(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
			Disks: []chain.Disk{{
				Name: "vda", Source: chain.Source{Path: "/vda.raw", Format: "raw"}, Size: int64(len(content)),
				Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
			}},
		}
		if i > 0 {
			d := &manifest.Disks[0]
			d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, &chain.CheckpointRef{Name: "before", UUID: chain.NewUUID()}
		}
		if err := repo.Commit(ctx, manifest); err != nil {
			t.Fatal(err)
		}
		for n := 0; i == 0 && n < 190; n++ { // other checkpoints, on other branches
			other := *manifest
			other.Checkpoint, other.UUID = fmt.Sprintf("other%d", n), chain.NewUUID()
			if err := repo.Commit(ctx, &other); err != nil {
				t.Fatal(err)
			}
		}
	}
	return store, content, identity
}

// tagged is a store whose listings have entity tags, as those of servers have.
type tagged struct{ objstore.Store }

func (s tagged) Unwrap() objstore.Store { return s.Store }

func (s tagged) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			if err == nil && strings.HasPrefix(prefix, "domains/") {
				var data []byte
				data, err = objstore.ReadAll(ctx, s.Store, info.Key, 1<<20)
				info.Version = archive.Sum(data).String()
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestFirstByteIsNear: the first byte of any checkpoint is there after at most six
// requests that wait for one another, however deep the chain and large the
// repository is; in an encrypted one, that hides names, after one more.
func TestFirstByteIsNear(t *testing.T) {
	t.Parallel()
	const depth = 60
	for _, c := range []struct {
		encrypt     encrypted
		most        int
		checkpoints []string
	}{{plain, 6, []string{"", "c0", "c30", "c60"}}, {keyed, 7, []string{"", "c30"}}} {
		store, content, identity := longChain(t, depth, c.encrypt)
		for _, checkpoint := range c.checkpoints {
			t.Run(fmt.Sprintf("encrypted %v, checkpoint %s", c.encrypt, checkpoint), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				args := []string{"restore", "--repo", dir, domain, "--output", filepath.Join(dir, "out")}
				if c.encrypt {
					file := filepath.Join(dir, "admin.id")
					if err := os.WriteFile(file, identity, 0o600); err != nil {
						t.Fatal(err)
					}
					args = append(args, "--identity", file)
				}
				want := content
				if checkpoint != "" {
					args = append(args, "--checkpoint", checkpoint)
					var n int
					if _, err := fmt.Sscanf(checkpoint, "c%d", &n); err != nil {
						t.Fatal(err)
					}
					want = append(bytes.Clone(content[:(n+1)*64<<10]), make([]byte, (depth-n)*64<<10)...)
				}
				synctest.Test(t, func(t *testing.T) {
					far := objstoretest.NewFar(tagged{store})
					// Not run: it would catch signals.
					root := newRoot(program{out: io.Discard, err: io.Discard, wrap: func(s objstore.Store) objstore.Store { return far }})
					root.SetArgs(args)
					if err := root.ExecuteContext(t.Context()); err != nil {
						t.Fatal(err)
					}
					if n := far.RoundTrips("packs"); n < 2 || n > c.most {
						t.Errorf("the first byte is there after %d round trips", n)
					} else {
						t.Logf("%d round trips", n)
					}
				})
				got, err := os.ReadFile(filepath.Join(dir, "out", "vda.raw"))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("it is restored to other bytes: %v", err)
				}
			})
		}
	}
}

// farAfter is a far store that is asked over connections, and lists behind keys, as those do that are
// remembered.
type farAfter struct{ *objstoretest.Far }

// Connections implements [objstore.Connected].
func (farAfter) Connections() int { return 16 }

func (f farAfter) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range f.List(ctx, prefix) {
			if (err != nil || info.Key > after) && (!yield(info, err) || err != nil) {
				return
			}
		}
	}
}

// TestIncrementIsNear: an increment waits for at most 14 answers in a row, four more where nothing is
// remembered, and for as many however many disks a domain has. What is asked while qemu-img adds a
// bitmap counts here, since that takes none of this clock's time.
func TestIncrementIsNear(t *testing.T) {
	t.Parallel()
	for _, disks := range []int{1, 3} {
		t.Run(fmt.Sprintf("disks %d", disks), func(t *testing.T) {
			t.Parallel()
			store, dir := objstore.NewMem(), t.TempDir()
			if _, err := chain.Init(t.Context(), store, chain.InitOptions{}); err != nil {
				t.Fatal(err)
			}
			args := []string{"backup", "--repo", t.TempDir(), domain}
			for i := range disks {
				image := filepath.Join(dir, fmt.Sprintf("%d.qcow2", i))
				testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
				args = append(args, "--disk", fmt.Sprintf("vd%c=%s,format=qcow2", 'a'+i, image))
			}
			backup := func(n int, cached string, most int) {
				t.Helper()
				for i := range disks {
					testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 0 64k", 1+n), filepath.Join(dir, fmt.Sprintf("%d.qcow2", i)))
				}
				var told bytes.Buffer
				took := 0
				synctest.Test(t, func(t *testing.T) {
					far := farAfter{objstoretest.NewFar(store)}
					root := newRoot(program{out: &told, err: &told, cache: filepath.Join(dir, cached), wrap: func(objstore.Store) objstore.Store { return far }})
					root.SetArgs(append(slices.Clone(args), "--checkpoint", fmt.Sprintf("c%d", n)))
					if err := root.ExecuteContext(t.Context()); err != nil {
						t.Fatal(err)
					}
					took = far.Elapsed()
				})
				if n > 1 && (took > most || !strings.Contains(told.String(), "incremental since")) {
					t.Errorf("c%d after %d round trips, want at most %d: %s", n, took, most, told.String())
				}
			}
			backup(1, "cache", 99)
			backup(2, "cache", 14)
			backup(3, "cache", 14) // from now on a bitmap is removed each time
			backup(4, "other", 18)
		})
	}
}

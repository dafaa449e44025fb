// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestMarkers: nothing of what a guest has, of how it is defined and where it lies, and no digest of
// it, is in the bytes of an encrypted repository after a whole life, and if that hides names no name of a domain, a
// checkpoint or a host in bytes or keys; in a plain one, that lives the same, all of it is
// found, so that the search is one that finds.
func TestMarkers(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{false, true} {
		dir := t.TempDir()
		m := &marked{T: t, dir: dir, repo: filepath.Join(dir, "repo")}
		m.live(encrypted)
		found := m.search()
		for what := range m.markers {
			if found[what] == encrypted {
				t.Errorf("encrypted %v: %s is found: %v", encrypted, what, found[what])
			}
		}
	}
}

type marked struct {
	*testing.T
	dir, repo string
	markers   map[string][]byte
}

func (m *marked) imgbackup(key string, args ...string) string {
	m.Helper()
	args = append(args, "-r", m.repo)
	if key != "" {
		args = append(args, "--identity", filepath.Join(m.dir, key))
	}
	out, err := exec.Command("imgbackup", args...).CombinedOutput()
	if err != nil {
		m.Fatalf("imgbackup %v: %v: %s", args, err, out)
	}
	return string(out)
}

const markedDomain = "MARKER domain"

const markedXML = `<domain type='kvm'><name>MARKER domain</name><uuid>d5b1f4c0-63a4-4d3c-9f0e-0e6f2b1f7a11</uuid><memory>1024</memory>
<description>MARKER-definition-of-the-domain</description><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='IMAGE'/><target dev='vda'/></disk></devices></domain>`

func (m *marked) live(encrypted bool) {
	m.Helper()
	host, admin := "", ""
	if encrypted {
		m.imgbackup("", "init", "--encrypt", "--hide-names", "--out", m.dir+"/admin.key")
		host, admin = "host.key", "admin.key"
		m.imgbackup(admin, "key", "add", "web1", "--role", "host", "--out", m.dir+"/host.key")
		m.imgbackup(admin, "key", "add", "mgr", "--role", "manager", "--out", m.dir+"/mgr.key")
	} else {
		m.imgbackup("", "init")
	}
	images := filepath.Join(m.dir, "MARKER-folder-of-images")
	if err := os.Mkdir(images, 0o700); err != nil {
		m.Fatal(err)
	}
	image, noise := filepath.Join(images, "vda.qcow2"), filepath.Join(m.dir, "noise")
	testkit.Tool(m, "qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
	// A chunk that does not compress, in whose middle somebody looks for a text; it is stored as it is.
	chunk := make([]byte, archive.GridSize)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(chunk)
	guest := []byte("MARKER-secret-text-of-the-guest")
	copy(chunk[500_000:], guest)
	if err := os.WriteFile(noise, chunk, 0o600); err != nil {
		m.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		m.Fatal(err)
	}
	folder, err := chain.GivenHostID("MARKER-host")
	if err != nil {
		m.Fatal(err)
	}
	if encrypted {
		folder = "web1"
	}
	sum, later := sha256.Sum256(chunk), sha256.Sum256(bytes.Repeat([]byte{9}, 64<<10))
	m.markers = map[string][]byte{
		"text of the guest": guest, "the definition": []byte("MARKER-definition-of-the-domain"), "the path of the image": []byte("MARKER-folder-of-images"),
		"a description": []byte("MARKER-description"), "a tag": []byte("MARKER-tag"), "the name of a disk": []byte(`"vda"`),
		"the SHA-256 of a chunk, in hex": []byte(hex.EncodeToString(sum[:])), "the SHA-256 of a chunk of an increment": []byte(hex.EncodeToString(later[:])),
		"a manifest": []byte("imgbackup-manifest"), "a map": []byte("imgbackup-map 1"), "a bitmap": []byte("imgbackup-bitmap 1"), "a record of a drill": []byte("imgbackup-drill"),
		"the domain": []byte(markedDomain), "the domain in keys": []byte("MARKER%20domain"), "a checkpoint": []byte("MARKER-checkpoint-1"), "a forgotten one": []byte("MARKER-checkpoint-2"),
		"the host": []byte(`"name": "` + hostname + `"`), "whose an index is": []byte("index/" + folder + "/"),
	}
	definition := filepath.Join(m.dir, "web.xml")
	if err := os.WriteFile(definition, []byte(strings.Replace(markedXML, "IMAGE", image, 1)), 0o600); err != nil {
		m.Fatal(err)
	}
	backup := func(name string, more ...string) {
		m.Helper()
		m.imgbackup(host, append([]string{"backup", "--host-id", "MARKER-host", "--domain-xml", definition, "--checkpoint", name, "--description", "MARKER-description"}, more...)...)
	}
	testkit.Guest(m, image, "write -s "+noise+" 0 1M", "write -P 9 4M 64k")
	backup("MARKER-checkpoint-1")
	testkit.Guest(m, image, "write -P 9 5M 64k", "write -P 3 6M 1M")
	backup("MARKER-checkpoint-2", "--mode", "incremental")
	testkit.Tool(m, "qemu-img", "bitmap", "--remove", "-f", "qcow2", image, bitmapOf(m, image))
	testkit.Guest(m, image, "write -P 4 5M 20k")
	backup("MARKER-checkpoint-3") // by content, by parts
	m.imgbackup(admin, "tag", markedDomain, "MARKER-checkpoint-3", "--add", "MARKER-tag")
	m.imgbackup(admin, "drill", markedDomain, "--skip", "filesystems,boot", "--scratch", m.dir)
	manager := ""
	if encrypted {
		manager = "mgr.key"
	}
	m.imgbackup(manager, "forget", markedDomain, "MARKER-checkpoint-2")
	m.imgbackup(manager, "prune", "--max-unused", "0")
	m.imgbackup(admin, "check", "--read-data")
	if encrypted {
		m.imgbackup(admin, "key", "rotate")
	}
	m.imgbackup(admin, "restore", markedDomain, "MARKER-checkpoint-1", "--to", "vda="+m.dir+"/out.raw")
}

// bitmapOf is the newest bitmap in an image.
func bitmapOf(t testing.TB, image string) string {
	t.Helper()
	info := testkit.Tool(t, "sh", "-c", `qemu-img info --output=json "$0" | jq -r '."format-specific".data.bitmaps[-1].name'`, image)
	return strings.TrimSpace(info)
}

// search looks for the markers in all bytes of the repository, as they are stored, and of what is
// zstd as it decodes.
func (m *marked) search() map[string]bool {
	m.Helper()
	found := make(map[string]bool)
	err := filepath.WalkDir(m.repo, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		stored, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		key, err := filepath.Rel(m.repo, path)
		if err != nil {
			return err
		}
		stored = append(stored, "\n"+key...)
		decoded, _ := exec.Command("zstd", "-dcfq", path).Output() // what is no zstd is passed through, or fails
		for what, marker := range m.markers {
			digest, _ := hex.DecodeString(string(marker))
			for _, data := range [][]byte{stored, decoded} {
				if bytes.Contains(data, marker) || len(digest) == sha256.Size && bytes.Contains(data, digest) {
					found[what] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		m.Fatal(err)
	}
	return found
}

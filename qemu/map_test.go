// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestMap: what qemu-img tells of an image covers it, and its data lie where it says.
func TestMap(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a,b.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
	testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 128k", "-c", "write -P 9 6M 64k", "-c", "write -z 3M 1M", path)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	data := make(map[int64]int64)
	err = Img{}.Map(t.Context(), path, func(e Extent) error {
		if e.Data {
			data[e.Start] = e.Length
			want := map[int64]byte{1 << 20: 7, 6 << 20: 9}[e.Start]
			if e.Offset == nil || !bytes.Equal(file[*e.Offset:*e.Offset+e.Length], bytes.Repeat([]byte{want}, int(e.Length))) {
				t.Errorf("%+v", e)
			}
		} else if !e.Zero {
			t.Errorf("%+v", e)
		}
		end = e.Start + e.Length
		return nil
	})
	if err != nil || end != 8<<20 || len(data) != 2 || data[1<<20] != 128<<10 || data[6<<20] != 64<<10 {
		t.Errorf("%v: %v up to %d", err, data, end)
	}
}

// TestMapFails: an answer that is no map, ends early or has a gap is an error; and one that never
// ends is ended by who has heard enough, and by the context.
func TestMapFails(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	one := `{"start":0,"length":512,"depth":0,"zero":true,"data":false}`
	for said, want := range map[string]string{
		"":                                "cannot be understood",
		"{}":                              "cannot be understood",
		"[" + one:                         "it does not end",
		"[" + one + "," + one + "]":       "follows what ends at 512",
		`[{"start":0,"length":0}]`:        "0 bytes at 0",
		`[{"start":0,"length":"x"}]`:      "cannot be understood",
		"[" + strings.Repeat(" ", 70<<10): "cannot be understood",
	} {
		q := script(t, "cat <<'E'\n"+said+"\nE\n")
		if err := q.Map(t.Context(), image, func(Extent) error { return nil }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v", said, err)
		}
	}
	var exit *ExitError
	q := script(t, "echo '["+one+"]'; echo no such thing >&2; exit 1")
	if err := q.Map(t.Context(), image, func(Extent) error { return nil }); !errors.As(err, &exit) || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("%v", err)
	}
	enough := errors.New("enough")
	endless := script(t, `n=0; echo "["; while :; do echo "{\"start\":$n,\"length\":1},"; n=$((n+1)); done`)
	if err := endless.Map(t.Context(), image, func(e Extent) error {
		if e.Start == 100 {
			return enough
		}
		return nil
	}); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := endless.Map(ctx, image, func(e Extent) error {
		if e.Start == 100 {
			cancel(enough)
		}
		return nil
	}); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

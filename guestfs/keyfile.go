// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// ParseKeys reads the keys of encrypted volumes, each [DISK:]DEVICE=FILE: the whole content
// of FILE is the key, or all but the end of its last line.
func ParseKeys(texts []string) (all []Key, err error) {
	for _, text := range texts {
		k, path, err := cutKey(text)
		if err != nil {
			return nil, usage.Errorf("luks-key: %w", err)
		}
		if k.Secret, err = readKey(path); err != nil {
			return nil, fmt.Errorf("luks-key: %w", err)
		}
		all = append(all, k)
	}
	return all, nil
}

// cutKey parts a volume from the file with its key.
func cutKey(text string) (k Key, path string, err error) {
	device, path, ok := strings.Cut(text, "=")
	if disk, rest, two := strings.Cut(device, ":"); two {
		if k.Disk, device = disk, rest; disk == "" {
			ok = false
		}
	}
	k.Device = device
	if !ok || path == "" || CheckDevice(device) != nil {
		return k, "", fmt.Errorf("%.80q: want [DISK:]DEVICE=FILE, as vda:/dev/sda2=web.key", text)
	}
	return k, path, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it is only read
	b, err := io.ReadAll(io.LimitReader(f, MaxKey+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, fmt.Errorf("%s is empty", path)
	case len(b) > MaxKey:
		return nil, fmt.Errorf("%s is no key: it has more than %d bytes", path, MaxKey)
	}
	return b, nil
}

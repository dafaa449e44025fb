// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Key opens an encrypted volume, which is one of LUKS.
type Key struct {
	Device string // as libguestfs names it: /dev/sda2
	Disk   string // that the device lies on; empty: whichever
	Secret []byte // a passphrase, or the content of a key file
}

// MaxKey bounds a key, bytes.
const MaxKey = 16 << 10

// LockedError says why a volume could not be opened by its key.
type LockedError struct{ Device, Why string }

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s could not be opened: %s", e.Device, e.Why)
}

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// unlock opens volumes, one after the other, so that one may lie in another. Logical
// volumes in them are there afterwards.
func (s *Session) unlock(ctx context.Context, keys []Key) error {
	s.opened, s.unlocked = make(map[string][]string), make(map[string]bool)
	for i := range keys {
		if err := s.open(ctx, &keys[i]); err != nil {
			return err
		}
		if _, err := s.call(ctx, "lvm-scan", "true"); err != nil && !errors.As(err, new(*CallError)) {
			return err // what is wrong with a volume group is seen where it is looked for
		}
	}
	return nil
}

func (s *Session) open(ctx context.Context, k *Key) error {
	no := func(format string, args ...any) error { return &LockedError{k.Device, fmt.Sprintf(format, args...)} }
	if err := CheckDevice(k.Device); err != nil {
		return err
	}
	kind, err := s.text(ctx, "vfs-type", k.Device)
	if err != nil {
		return s.locked(no, err)
	}
	if kind != TypeLUKS {
		return no("it is no LUKS volume, but %q", kind)
	}
	groups, err := s.groups(ctx)
	if err != nil {
		return err
	}
	disks := s.disksOf(k.Device, groups)
	if k.Disk != "" && strings.Join(disks, " ") != k.Disk {
		return no("it lies on %s, not on %s", strings.Join(disks, " "), k.Disk)
	}
	id, err := s.text(ctx, "vfs-uuid", k.Device)
	if err != nil {
		return s.locked(no, err)
	}
	if !uuidPattern.MatchString(id) {
		return no("%.80q is no UUID", id)
	}
	said, err := s.tryKey(ctx, id, k.Secret)
	if trimmed := bytes.TrimRight(k.Secret, "\r\n"); err == nil && !strings.HasSuffix(said, opens) && len(trimmed) < len(k.Secret) {
		said, err = s.tryKey(ctx, id, trimmed)
	}
	if err != nil {
		return s.locked(no, err)
	}
	if !strings.HasSuffix(said, opens) {
		return no("%s", strings.ReplaceAll(said, "\n", "; "))
	}
	s.opened["/dev/mapper/"+mapped(id)] = disks
	s.unlocked[k.Device] = true
	return nil
}

// locked makes what the appliance could not do an error about the volume.
func (s *Session) locked(no func(string, ...any) error, err error) error {
	var call *CallError
	if errors.As(err, &call) {
		return no("%s", call.Said)
	}
	return err
}

// mapped is what an opened volume is called, as systemd calls it, and so a guest's fstab.
func mapped(id string) string { return "luks-" + id }

// opens is said by a volume that a key has opened.
const opens = "it opens"

// tryKey tries a key on the volume of that UUID. The key is an argument of nobody: it goes
// into the appliance on the pipe on which all commands go, and is decoded there.
func (s *Session) tryKey(ctx context.Context, id string, secret []byte) (said string, err error) {
	script := `d=$(blkid -c /dev/null -o device -t UUID=` + id + `)
if [ $(echo "$d" | wc -w) != 1 ]; then echo "there are several of the UUID ` + id + `"; exit; fi
base64 -d <<END | cryptsetup open --type luks --key-file=- "$d" ` + mapped(id) + ` 2>&1 && echo "` + opens + `"; true
` + base64.StdEncoding.EncodeToString(secret) + `
END
`
	return s.shell(ctx, script)
}

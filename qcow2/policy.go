// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// maxLayers bounds the length of a backing chain.
const maxLayers = 200

// policy decides which files an image may name.
type policy struct {
	roots []string // absolute, symlinks resolved: files anywhere below may be named
}

// newPolicy makes the policy for a chain whose active image was given as path:
// its own folder, as given and with symlinks resolved, and allow.
func newPolicy(path string, allow []string) (*policy, error) {
	p := &policy{}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	given, err := filepath.EvalSymlinks(folder(path))
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{given, filepath.Dir(resolved)} {
		// A folder of device nodes is no folder of images: an image on a
		// logical volume must not reach the host's other disks.
		if !within("/dev", dir) {
			p.roots = append(p.roots, dir)
		}
	}
	for _, dir := range allow {
		abs, err := sys.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("allowed folder %s: %w", quote(dir), err)
		}
		resolved, err := filepath.EvalSymlinks(abs)
		if os.IsNotExist(err) {
			continue // nothing can be in it
		}
		if err != nil {
			return nil, fmt.Errorf("allowed folder %s: %w", quote(dir), err)
		}
		p.roots = append(p.roots, resolved)
	}
	return p, nil
}

// within reports whether a path is dir or below it; both are clean and absolute.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// folder is the folder that the kernel finds the file of an absolute path in;
// it is not cleaned, since ".." after a symlink is not what it looks like.
func folder(path string) string {
	return path[:strings.LastIndexByte(path, '/')+1]
}

// namedFile is a file that an image names: its path as QEMU would find it, and
// with symlinks resolved.
type namedFile struct{ path, resolved string }

// resolve finds the file that the image at path (absolute, symlinks as they
// are) names, and decides whether it may be opened. what is the file's part,
// as "backing file".
func (p *policy) resolve(image, name, what string) (namedFile, error) {
	refuse := func(format string, args ...any) (namedFile, error) {
		return namedFile{}, &PolicyError{Path: image, What: fmt.Sprintf("its %s %s ", what, quote(name)) + fmt.Sprintf(format, args...)}
	}
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return refuse("is not a file name")
	}
	// QEMU takes all before a colon for a protocol if no slash comes before it.
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		return refuse("is not a plain path; names with a protocol (%s) are not followed", quote(name[:i+1]))
	}
	path := name
	if !filepath.IsAbs(name) {
		path = folder(image) + name
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		// The error names the path, which comes out of the image.
		return namedFile{}, fmt.Errorf("%s: find its %s %s: %w", image, what, quote(name), rootCause(err))
	}
	for _, root := range p.roots {
		if within(root, resolved) {
			return namedFile{path: path, resolved: resolved}, nil
		}
	}
	return refuse("is %s, outside of the image's folder; allow that folder explicitly if it is to be read (--allow-dir)", quote(resolved))
}

// rootCause strips the path that an error of package os repeats.
func rootCause(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}

// backingFormat decides how the backing file of an image is read: only as the
// image itself records it.
func backingFormat(image string, h *Header) (Format, error) {
	switch f := Format(h.BackingFormat); f {
	case Raw, Qcow2:
		return f, nil
	case "":
		return "", &PolicyError{Path: image, What: fmt.Sprintf(
			"the format of its backing file %s is not recorded, and formats are never guessed; record it with: qemu-img rebase -u -b BACKING -F FORMAT IMAGE", quote(h.BackingFile))}
	default:
		return "", &UnsupportedError{Path: image, What: fmt.Sprintf("the format %s of its backing file cannot be read; raw and qcow2 can", quote(h.BackingFormat))}
	}
}

// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxScreen bounds a screen, pixels.
const maxScreen = 16 << 20

// screenshot asks QEMU for the screen, in a file in memory of ours.
func (m *monitor) screenshot(ctx context.Context) (*image.RGBA, error) {
	fd, err := unix.MemfdCreate("screen", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "screen")
	defer func() { _ = f.Close() }()
	// QEMU looks for a descriptor that is open in just the way that it needs.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.Close() }()
	if _, err := m.do(ctx, "add-fd", map[string]any{"fdset-id": screenSet}, w); err != nil {
		return nil, err
	}
	_, err = m.do(ctx, "screendump", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", screenSet)}, nil)
	_, rerr := m.do(ctx, "remove-fd", map[string]any{"fdset-id": screenSet}, nil)
	if err != nil {
		return nil, err
	}
	if rerr != nil {
		return nil, rerr
	}
	return readPPM(io.NewSectionReader(f, 0, 3*maxScreen+100))
}

const screenSet = 7

// readPPM reads an image in the binary form of PPM (netpbm's ppm(5)), with 255 shades.
func readPPM(from io.Reader) (*image.RGBA, error) {
	r := bufio.NewReader(from)
	var width, height, shades int
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &width, &height, &shades); err != nil {
		return nil, fmt.Errorf("the screen is no PPM image: %w", err)
	}
	if width < 1 || height < 1 || shades != 255 || width > maxScreen || height > maxScreen/width {
		return nil, fmt.Errorf("the screen has %d × %d pixels and %d shades", width, height, shades)
	}
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	row := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(r, row); err != nil {
			return nil, fmt.Errorf("the screen is cut off: %w", err)
		}
		for x := range width {
			img.SetRGBA(x, y, color.RGBA{row[3*x], row[3*x+1], row[3*x+2], 255})
		}
	}
	return img, nil
}

func encodePNG(img *image.RGBA) []byte {
	var b bytes.Buffer
	if img == nil || png.Encode(&b, img) != nil {
		return nil
	}
	return b.Bytes()
}

// alike reports whether two screens are the same, but for what blinks.
func alike(a, b *image.RGBA) bool {
	if a == nil || b == nil || a.Rect != b.Rect {
		return false
	}
	differ := 0
	for i := 0; i < len(a.Pix); i += 4 {
		if !bytes.Equal(a.Pix[i:i+4], b.Pix[i:i+4]) {
			differ++
		}
	}
	return differ <= len(a.Pix)/4/500
}

// background is the colour that most pixels have, and how many have another.
func background(img *image.RGBA) (most color.RGBA, others int) {
	count := make(map[color.RGBA]int)
	for i := 0; i < len(img.Pix); i += 4 {
		c := color.RGBA{img.Pix[i], img.Pix[i+1], img.Pix[i+2], 255}
		if len(count) < 4096 || count[c] > 0 {
			count[c]++
		}
	}
	for c, n := range count {
		if n > count[most] {
			most = c
		}
	}
	return most, len(img.Pix)/4 - count[most]
}

// blank reports whether there is next to nothing on a screen.
func blank(img *image.RGBA) bool {
	_, others := background(img)
	return others < 200
}

// shows reports whether what is on the firmware's screen is still there: its first line,
// or most of it. Then whatever else there is, the firmware or a loader that it could not
// start has said it.
func shows(img, firmware *image.RGBA) bool {
	if firmware == nil || img.Rect != firmware.Rect {
		return false
	}
	most, others := background(firmware)
	same, firstRow := 0, -1
	for i := 0; i < len(img.Pix); i += 4 {
		c := color.RGBA{firmware.Pix[i], firmware.Pix[i+1], firmware.Pix[i+2], 255}
		if c == most {
			continue
		}
		if firstRow < 0 {
			firstRow = i / img.Stride
		}
		if bytes.Equal(img.Pix[i:i+3], firmware.Pix[i:i+3]) {
			same++
		}
	}
	if others == 0 {
		return false
	}
	end := min((firstRow+lineHeight)*img.Stride, len(img.Pix))
	return same*2 >= others || bytes.Equal(img.Pix[firstRow*img.Stride:end], firmware.Pix[firstRow*img.Stride:end])
}

// lineHeight is the height of what a line of text takes at least, pixels.
const lineHeight = 12

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/nbd"
)

// firstBytes starts an NBD server and prints the seconds until 4 KiB of an
// export's middle have been read.
func firstBytes(socket, export string, command []string) (err error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	begin := time.Now()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, cmd.Process.Signal(unix.SIGTERM), cmd.Wait())
	}()
	client, err := dial(ctx, socket, export)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := client.ReadAt(ctx, make([]byte, 4096), client.Size()/2/4096*4096); err != nil {
		return err
	}
	fmt.Printf("%.4f\n", time.Since(begin).Seconds())
	return nil
}

// dial waits for a server that is just starting.
func dial(ctx context.Context, socket, export string) (*nbd.Client, error) {
	for {
		client, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return client, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Millisecond):
		}
	}
}

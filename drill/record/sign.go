// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// Namespace is what signatures of records are good for, and for nothing else: see
// ssh-keygen(1), -Y sign.
const Namespace = "imgbackup-drill"

const installKeygen = "install openssh-client (Debian, Ubuntu) or openssh (Fedora)"

// Sign signs data with the key in a file, by ssh-keygen: so keys with a passphrase, in an
// agent (by the file of the public key) or on a token work as they do for ssh.
func Sign(ctx context.Context, key string, data []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-q", "-n", Namespace, "-f", key)
	return run(cmd, data, "sign with "+key)
}

// SignatureError says that a signature does not prove what it should.
type SignatureError struct{ What string }

func (e *SignatureError) Error() string { return "the signature is not good: " + e.What }

// VerifySignature has ssh-keygen prove a signature of data by one of the signers in the
// file allowed (ssh-keygen(1), ALLOWED SIGNERS), and returns who that is. What is wrong
// with the signature is a [SignatureError].
func VerifySignature(ctx context.Context, allowed string, data, signature []byte) (who string, err error) {
	if _, err := os.Stat(allowed); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "imgbackup-verify.")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "record.sig")
	if err := os.WriteFile(file, signature, 0o600); err != nil {
		return "", err
	}
	found, err := run(exec.CommandContext(ctx, "ssh-keygen", "-Y", "find-principals", "-s", file, "-f", allowed), nil, "find the signer")
	if err != nil {
		return "", notGood(ctx, err)
	}
	who, _, _ = strings.Cut(string(found), "\n")
	cmd := exec.CommandContext(ctx, "ssh-keygen", "-Y", "verify", "-n", Namespace, "-f", allowed, "-I", who, "-s", file)
	if _, err := run(cmd, data, "verify the signature"); err != nil {
		return "", notGood(ctx, err)
	}
	return who, nil
}

// notGood is the error of ssh-keygen's own verdict.
func notGood(ctx context.Context, err error) error {
	if errors.As(err, new(*exec.ExitError)) && ctx.Err() == nil {
		return &SignatureError{What: err.Error()}
	}
	return err
}

func run(cmd *exec.Cmd, in []byte, what string) ([]byte, error) {
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &said
	cmd.Env = confine.Environment() // an agent is in there, and no key of a repository
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started, ended := sys.StartChild(cmd)
	err := <-started
	if err == nil {
		err = <-ended
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s: there is no ssh-keygen: %s", what, installKeygen)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %.300s", what, err, strings.TrimSpace(strings.ReplaceAll(said.String(), "\n", " ")))
	case out.Len() > 64<<10:
		return nil, fmt.Errorf("%s: it wrote %d bytes", what, out.Len())
	}
	return out.Bytes(), nil
}

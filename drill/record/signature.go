// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// sshSignature is what is armored in a signature: OpenSSH's PROTOCOL.sshsig.
type sshSignature struct {
	Magic     [6]byte
	Version   uint32
	Key       string
	Namespace string
	Reserved  string
	Hash      string
	Signature string
}

// signed is what the key signs.
type signed struct {
	Magic     [6]byte
	Namespace string
	Reserved  string
	Hash      string
	Digest    string
}

// CheckSignature returns a [SignatureError] if a signature is not one of data by the key
// that it names. Whose key that is, it does not say: see [VerifySignature].
func CheckSignature(data, signature []byte) error {
	block, rest := pem.Decode(signature)
	if block == nil || block.Type != "SSH SIGNATURE" || len(bytes.TrimSpace(rest)) > 0 {
		return &SignatureError{What: "it is no armored SSH signature"}
	}
	var s sshSignature
	if err := ssh.Unmarshal(block.Bytes, &s); err != nil {
		return &SignatureError{What: err.Error()}
	}
	magic := [6]byte([]byte("SSHSIG"))
	if s.Magic != magic || s.Version != 1 || s.Namespace != Namespace {
		return &SignatureError{What: fmt.Sprintf("it is of version %d, for %.80q", s.Version, s.Namespace)}
	}
	var digest []byte
	switch s.Hash {
	case "sha512":
		sum := sha512.Sum512(data)
		digest = sum[:]
	case "sha256":
		sum := sha256.Sum256(data)
		digest = sum[:]
	default:
		return &SignatureError{What: fmt.Sprintf("its hash is %.80q", s.Hash)}
	}
	key, err := ssh.ParsePublicKey([]byte(s.Key))
	if err != nil {
		return &SignatureError{What: err.Error()}
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal([]byte(s.Signature), &sig); err != nil {
		return &SignatureError{What: err.Error()}
	}
	of := ssh.Marshal(signed{Magic: magic, Namespace: s.Namespace, Reserved: s.Reserved, Hash: s.Hash, Digest: string(digest)})
	if err := key.Verify(of, &sig); err != nil {
		return &SignatureError{What: err.Error()}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/imgbackup/imgbackup/crypt"
)

// What the age files under keys/ hold is text: an identity file for age, or a private key
// for OpenSSL, with comment lines.

const digestSecretField = "digest-secret"

// digestCheck is what a roster has of the secret that keys digests: it proves one, and
// tells nothing of it.
func digestCheck(secret [crypt.SecretLength]byte) string {
	sum := sha256.Sum256(append([]byte("imgbackup digest secret, version 1\n"), secret[:]...))
	return hex.EncodeToString(sum[:])
}

// dataText is the content of keys/data/FOLDER/NAME.age.
func dataText(repository string, g *crypt.Generation) (string, error) {
	id, err := identityText(g.Data.Identity)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("# imgbackup-repository: %s\n# imgbackup-generation: %d\n%s\n", repository, g.Number, id), nil
}

// metadataText is the content of keys/metadata/FOLDER/NAME.age.
func metadataText(repository string, g *crypt.Generation) (string, error) {
	id, err := identityText(g.Metadata.Identity)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("# imgbackup-repository: %s\n# imgbackup-generation: %d\n# imgbackup-%s: %s\n%s\n",
		repository, g.Number, digestSecretField, hex.EncodeToString(g.Secret[:]), id), nil
}

// identityText is the line of an identity of age's own.
func identityText(id age.Identity) (string, error) {
	s, ok := id.(fmt.Stringer)
	if !ok {
		return "", errors.New("this key is not there")
	}
	return s.String(), nil
}

func recipientText(r age.Recipient) string {
	if s, ok := r.(fmt.Stringer); ok {
		return s.String()
	}
	return ""
}

// oneIdentity reads the identity of a file under keys/, whose public half must be known.
func oneIdentity(text []byte, public string) (age.Identity, error) {
	var found age.Identity
	for line := range bytes.Lines(text) {
		s := strings.TrimSpace(string(line))
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		id, recipient, err := parseIdentity(s, Ways{})
		if err != nil {
			return nil, err
		}
		if found != nil || recipient != public {
			return nil, errors.New("it is not the private half of the key that the roster names")
		}
		found = id
	}
	if found == nil {
		return nil, errors.New("it holds no key")
	}
	return found, nil
}

// parseMetadata reads the content of keys/metadata/FOLDER/NAME.age.
func parseMetadata(text []byte, g *Generation) (id age.Identity, secret [crypt.SecretLength]byte, err error) {
	if id, err = oneIdentity(text, g.MetadataKey); err != nil {
		return nil, secret, err
	}
	fields, err := comments(text)
	if err != nil {
		return nil, secret, err
	}
	b, err := hex.DecodeString(fields[digestSecretField])
	if err != nil || len(b) != len(secret) {
		return nil, secret, errors.New("it holds no secret for digests")
	}
	copy(secret[:], b)
	if digestCheck(secret) != g.DigestCheck {
		return nil, secret, errors.New("its secret for digests is not the one that the roster names")
	}
	return id, secret, nil
}

const pemPrivate = "PRIVATE KEY"

// signingText is the content of keys/signing/NAME.age: PKCS #8 in PEM.
func signingText(repository, name string, key ed25519.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("# imgbackup-repository: %s\n# imgbackup-member: %s\n%s", repository, name, pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der})), nil
}

func parseSigning(text []byte, m *Member) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemPrivate {
		return nil, errors.New("it holds no private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("it holds no private key")
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok || !m.public().Equal(private.Public()) {
		return nil, errors.New("it is not the private half of the key that the roster names")
	}
	return private, nil
}

// encryptTo makes an age file of text.
func encryptTo(r age.Recipient, text string) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, r)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt a key: %w", err)
	}
	return b.Bytes(), nil
}

// errOther says that a file does not open with these identities.
var errOther = errors.New("the key does not open this")

// decrypt opens an age file under keys/; errOther: not with these identities.
func decrypt(file []byte, ids []age.Identity) ([]byte, error) {
	if len(file) > maxFile {
		return nil, errors.New("it is too long")
	}
	r, err := age.Decrypt(bytes.NewReader(file), ids...)
	if err != nil {
		if isWrongKey(err) {
			return nil, errOther
		}
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxFile))
}

// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ServerTLS is the configuration of a server with the certificate and key in two
// PEM files. With the certificates of authorities in a third, caFile (which may be
// empty), clients must present a certificate that one of these has signed.
func ServerTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate and key: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if caFile == "" {
		return c, nil
	}
	trusted, err := authorities(caFile)
	if err != nil {
		return nil, err
	}
	// The client is not told which authorities these are, as ClientCAs would: GnuTLS,
	// which QEMU and libnbd use, then finds no RSA certificate of its own to be fit
	// for TLS 1.3, and sends none.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(s, trusted) }
	return c, nil
}

// verifyClient proves that one of the trusted authorities has signed a client's
// certificate, for clients.
func verifyClient(s tls.ConnectionState, trusted *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the client has sent no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("the client's certificate: %w", err)
	}
	return nil
}

func authorities(caFile string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("TLS authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLS authorities: %s holds no certificate in PEM form", caFile)
	}
	return pool, nil
}

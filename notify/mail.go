// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/wneessen/go-mail"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/printable"
)

func (s *Sender) mail(ctx context.Context, m *config.Email, e *Event) error {
	message, err := compose(m, e)
	if err != nil {
		return backoff.Permanent(err)
	}
	client, err := s.mailClient(ctx, m)
	if err != nil {
		return backoff.Permanent(err)
	}
	if err := client.DialAndSendWithContext(ctx, message); err != nil {
		if lasting(err) {
			return backoff.Permanent(err)
		}
		return err
	}
	return nil
}

// lasting reports whether another try is of no use: the server has said so, or is not the
// one that was meant.
func lasting(err error) bool {
	var (
		sent    *mail.SendError
		reply   *textproto.Error
		foreign *tls.CertificateVerificationError
	)
	return errors.As(err, &sent) && sent.ErrorCode() >= 500 || errors.As(err, &reply) && reply.Code >= 500 || errors.As(err, &foreign)
}

func (s *Sender) mailClient(ctx context.Context, m *config.Email) (*mail.Client, error) {
	host, port := m.Server, 0
	if h, p, err := net.SplitHostPort(m.Server); err == nil {
		if host = h; p != "" {
			if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
				return nil, fmt.Errorf("%s: there is no such port", m.Server)
			}
		}
	}
	options := []mail.Option{mail.WithHELO(hostname())}
	if deadline, ok := ctx.Deadline(); ok {
		options = append(options, mail.WithTimeout(time.Until(deadline)))
	}
	secure := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if m.CAFile != "" {
		text, err := os.ReadFile(m.CAFile)
		if err != nil {
			return nil, err
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: there is no certificate in it", m.CAFile)
		}
	}
	options = append(options, mail.WithTLSConfig(secure))
	switch m.TLS {
	case "tls":
		options = append(options, mail.WithSSLPort(false))
	case "none":
		options = append(options, mail.WithTLSPortPolicy(mail.NoTLS))
	default:
		options = append(options, mail.WithTLSPortPolicy(mail.TLSMandatory))
	}
	if port != 0 {
		options = append(options, mail.WithPort(port))
	}
	if m.User != "" {
		if m.Password == nil {
			return nil, fmt.Errorf("there is a user, and no password")
		}
		password, err := m.Password.Read(s.Getenv)
		if err != nil {
			return nil, err
		}
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(m.User), mail.WithPassword(password))
	}
	return mail.NewClient(host, options...)
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

func compose(m *config.Email, e *Event) (*mail.Msg, error) {
	message := mail.NewMsg()
	if err := message.From(m.From); err != nil {
		return nil, err
	}
	if err := message.To(m.To...); err != nil {
		return nil, err
	}
	message.Subject("imgbackup: " + printable.OneLine(e.Summary))
	message.SetMessageID()
	message.SetDate()
	message.SetGenHeader(mail.Header("Auto-Submitted"), "auto-generated")
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nJob:    %s\nHost:   %s\nBegun:  %s\n", printable.OneLine(e.Summary), e.Job, e.Host, e.Begun.Format(time.RFC1123Z))
	if e.Ended != nil {
		fmt.Fprintf(&b, "Ended:  %s\n", e.Ended.Format(time.RFC1123Z))
	}
	if e.Run != "" {
		fmt.Fprintf(&b, "Status: %d\nRun:    %s (imgbackup runs %.8s)\nLog:    %s\n", e.Status, e.Run, e.Run, e.Log)
	}
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n- %s", printable.OneLine(p))
	}
	message.SetBodyString(mail.TypeTextPlain, b.String()+"\n")
	return message, nil
}

// SPDX-License-Identifier: Apache-2.0

// Package notify tells people and programs what came of a job: by mail, a webhook, a ping
// or a command. Receivers may be away, slow, or lie: each is tried a few times, and no
// answer is read further than it takes.
package notify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/imgbackup/imgbackup/config"
)

// What there is to be told of.
const (
	Start    = "start" // only pings are told
	Failure  = "failure"
	Recovery = "recovery" // the first success after a failure
	Success  = "success"
	Overdue  = "overdue"
)

// Event is what receivers are told; docs/json.md explains it.
type Event struct {
	Event   string     `json:"event"`
	Job     string     `json:"job"`
	Host    string     `json:"host"`
	Run     string     `json:"run,omitempty"`
	Status  int        `json:"status"`
	Begun   time.Time  `json:"begun"`
	Ended   *time.Time `json:"ended,omitempty"`
	Summary string     `json:"summary"` // one line
	// Problems are what went wrong, a line each.
	Problems []string `json:"problems,omitempty"`
	Log      string   `json:"log,omitempty"` // the file, on Host
}

// Sender sends to the receivers of a configuration.
type Sender struct {
	Notices map[string]config.Notice
	Getenv  func(string) string
	// Secrets are variables of the environment that commands are not to see.
	Secrets []string
	// First is the time before the second try; Tries how many there are.
	First time.Duration
	Tries uint
}

// Usual is a sender as it is outside tests.
func Usual(c *config.Config) *Sender {
	return &Sender{Notices: c.Notices, Getenv: os.Getenv, Secrets: c.SecretVariables(), First: 2 * time.Second, Tries: 4}
}

// Wants reports whether a receiver is to be told of an event.
func Wants(n config.Notice, event string) bool {
	switch {
	case n.Ping != nil:
		return event != Overdue // it finds that out by itself
	case event == Recovery:
		return slices.Contains(n.On, Recovery) || slices.Contains(n.On, Success)
	}
	return slices.Contains(n.On, event)
}

// Send tells one receiver, if it wants to know. The error holds no secret.
func (s *Sender) Send(ctx context.Context, name string, e *Event) error {
	n, ok := s.Notices[name]
	if !ok || !Wants(n, e.Event) {
		return nil
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = s.First
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(n.Timeout), errSlow)
		defer cancel()
		err := s.once(ctx, n, e)
		if err != nil && errors.Is(context.Cause(ctx), errSlow) {
			err = fmt.Errorf("it did not answer within %s", n.Timeout)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(s.Tries), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("notice %s: %w", name, err)
	}
	return nil
}

var errSlow = errors.New("it took too long")

func (s *Sender) once(ctx context.Context, n config.Notice, e *Event) error {
	switch {
	case n.Email != nil:
		return s.mail(ctx, n.Email, e)
	case n.Webhook != nil:
		return s.webhook(ctx, n.Webhook, e)
	case n.Ping != nil:
		return s.ping(ctx, n.Ping, e)
	}
	return s.command(ctx, n.Command, e)
}

// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/template"

	"github.com/cenkalti/backoff/v5"

	"github.com/imgbackup/imgbackup/config"
)

// maxAnswer is how much of an answer is read, so that its connection ends well.
const maxAnswer = 64 << 10

func (s *Sender) webhook(ctx context.Context, w *config.Webhook, e *Event) error {
	address, err := w.URL.Read(s.Getenv)
	if err != nil {
		return backoff.Permanent(err)
	}
	body, err := bodyOf(w.Template, e)
	if err != nil {
		return backoff.Permanent(err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	for name, v := range w.Headers {
		text, err := v.Read(s.Getenv)
		if err != nil {
			return backoff.Permanent(fmt.Errorf("header %s: %w", name, err))
		}
		header.Set(name, text)
	}
	return request(ctx, http.MethodPost, address, header, body)
}

func bodyOf(text string, e *Event) ([]byte, error) {
	if text == "" {
		return json.Marshal(e)
	}
	t, err := parseTemplate(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, e); err != nil {
		return nil, fmt.Errorf("the template: %w", err)
	}
	return b.Bytes(), nil
}

func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("body").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		out, err := json.Marshal(v)
		return string(out), err
	}}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the template: %w", err)
	}
	return t, nil
}

func (s *Sender) ping(ctx context.Context, p *config.Ping, e *Event) error {
	address, err := p.URL.Read(s.Getenv)
	if err != nil {
		return backoff.Permanent(err)
	}
	switch e.Event {
	case Start:
		address += "/start"
	case Failure:
		address += "/fail"
	}
	return request(ctx, http.MethodPost, address, nil, []byte(e.Summary))
}

// request sends one, to where its address says and nowhere else.
func request(ctx context.Context, method, address string, header http.Header, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(errors.New("its URL is none")) // which may hold a secret
	}
	if header != nil {
		r.Header = header
	}
	r.Header.Set("User-Agent", "imgbackup")
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	client := &http.Client{
		Transport: transport,
		// What is sent, and its headers, are for nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answer, err := client.Do(r)
	var where *url.Error
	if errors.As(err, &where) {
		err = where.Err // without the URL
	}
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }() // only read
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	switch {
	case answer.StatusCode >= 200 && answer.StatusCode < 300:
		return nil
	case answer.StatusCode >= 500, answer.StatusCode == http.StatusTooManyRequests, answer.StatusCode == http.StatusRequestTimeout:
		return fmt.Errorf("it answered %d", answer.StatusCode)
	}
	return backoff.Permanent(fmt.Errorf("it answered %d", answer.StatusCode))
}

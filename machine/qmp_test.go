// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// An answer that comes after its command was given up is none to the next command, nor is
// one that nobody has asked for.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	theirs, ours, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = theirs.Close(), ours.Close() }()
	m := newMonitor(ours)
	in := bufio.NewReader(theirs)
	received := func() (command, id string) {
		t.Helper()
		var got struct{ Execute, ID string }
		line, err := in.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &got)
		}
		if err != nil {
			t.Error(err)
		}
		return got.Execute, got.ID
	}
	say := func(format string, args ...any) {
		t.Helper()
		if _, err := fmt.Fprintf(theirs, format+"\n", args...); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan string)
	go func() {
		_, id := received()
		cancel()
		gaveUp <- id
	}()
	if _, err := m.do(ctx, "query-version", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	late := <-gaveUp
	go func() {
		_, id := received()
		say(`{"return": {"status": "of nobody"}}`)
		say(`{"return": {"status": "late"}, "id": %q}`, late)
		say(`{"return": {"status": "running"}, "id": %q}`, id)
		_, id = received()
		say(`{"error": {"desc": "of nobody"}}`)
		say(`{"error": {"desc": "no such thing"}, "id": %q}`, id)
	}()
	if status, err := m.status(t.Context()); err != nil || status != "running" {
		t.Errorf("%q, %v", status, err)
	}
	if _, err := m.status(t.Context()); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Error(err)
	}
}

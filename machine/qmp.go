// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message of QEMU's monitor or of a guest agent, bytes.
const maxMessage = 1 << 20

// event is something that QEMU tells by itself.
type event struct {
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// monitor speaks QEMU's monitor protocol (docs/interop/qmp-spec.txt of QEMU).
type monitor struct {
	conn   *net.UnixConn
	events chan event // bounded: what nobody takes in time is dropped
	ended  chan struct{}

	mu   sync.Mutex // one command at a time
	last uint64     // the number of the last command

	waiting sync.Mutex   // guards what follows
	id      string       // of the command whose answer is waited for; empty: none is
	answer  chan message // where that goes
}

type message struct {
	event
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	ID string `json:"id"`
}

// errMonitor says that QEMU answers no more.
var errMonitor = errors.New("QEMU's monitor has ended")

// newMonitor begins to speak on a connection.
func newMonitor(conn *net.UnixConn) *monitor {
	m := &monitor{conn: conn, events: make(chan event, 64), ended: make(chan struct{})}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.ended)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 4096), maxMessage)
	for lines.Scan() {
		var msg message
		if json.Unmarshal(lines.Bytes(), &msg) != nil {
			return
		}
		switch {
		case msg.Event != "":
			select {
			case m.events <- msg.event:
			default:
			}
		case msg.Return != nil || msg.Error != nil:
			m.deliver(msg)
		}
	}
}

// await says which answer is waited for, and returns where it comes. One to a command
// that was given up may still be on its way, and is none to the next.
func (m *monitor) await(id string) <-chan message {
	m.waiting.Lock()
	defer m.waiting.Unlock()
	m.id, m.answer = id, make(chan message, 1)
	return m.answer
}

func (m *monitor) deliver(msg message) {
	m.waiting.Lock()
	defer m.waiting.Unlock()
	if m.id != "" && msg.ID == m.id {
		m.answer <- msg // it has room for one
		m.id = ""
	}
}

// do runs a command; file, if any, goes with it.
func (m *monitor) do(ctx context.Context, command string, arguments any, file *os.File) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	id := strconv.FormatUint(m.last, 10)
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return nil, err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	answer := m.await(id)
	if err := m.conn.SetWriteDeadline(time.Now().Add(monitorPatience)); err != nil {
		return nil, err
	}
	if _, _, err := m.conn.WriteMsgUnix(append(text, '\n'), rights, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", errMonitor, err)
	}
	timer := time.NewTimer(monitorPatience)
	defer timer.Stop()
	select {
	case msg := <-answer:
		if msg.Error != nil {
			return nil, fmt.Errorf("%s: %.200q", command, msg.Error.Desc)
		}
		return msg.Return, nil
	case <-m.ended:
		return nil, errMonitor
	case <-timer.C:
		return nil, fmt.Errorf("%s: QEMU does not answer", command)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// monitorPatience is how long QEMU may take to answer.
const monitorPatience = time.Minute

// status is the state of the machine, in QEMU's words.
func (m *monitor) status(ctx context.Context) (string, error) {
	var st struct {
		Status string `json:"status"`
	}
	answer, err := m.do(ctx, "query-status", nil, nil)
	if err == nil {
		err = json.Unmarshal(answer, &st)
	}
	return st.Status, err
}

// version is QEMU's.
func (m *monitor) version(ctx context.Context) (string, error) {
	var v struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	}
	answer, err := m.do(ctx, "query-version", nil, nil)
	if err == nil {
		err = json.Unmarshal(answer, &v)
	}
	return fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro), err
}

// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// agent asks the guest agent, over and over, until it answers.
type agent struct {
	conn net.Conn
	up   chan struct{} // closed when it has
	says string        // of the operating system, once it is up
	done chan struct{}
}

func newAgent(conn net.Conn) *agent {
	a := &agent{conn: conn, up: make(chan struct{}), done: make(chan struct{})}
	go a.run()
	return a
}

// agentEvery is how often it is asked.
const agentEvery = 2 * time.Second

// run asks whether it is there by guest-sync-delimited, as the agent's documentation
// says (qga/qapi-schema.json of QEMU): whatever came before the byte 0xff is old.
func (a *agent) run() {
	defer close(a.done)
	in := bufio.NewReaderSize(a.conn, maxMessage)
	for n := int64(1); ; n++ {
		id := time.Now().UnixNano()>>10 + n
		// What was asked before the agent was there it answers, too, all at once.
		_, err := a.ask(in, fmt.Sprintf("\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id), true, func(answer []byte) bool {
			var got struct {
				Return int64 `json:"return"`
			}
			return json.Unmarshal(answer, &got) == nil && got.Return == id
		})
		if err == nil {
			break
		}
		if !timedOut(err) {
			return
		}
	}
	if answer, err := a.ask(in, "{\"execute\":\"guest-get-osinfo\"}\n", false, func([]byte) bool { return true }); err == nil {
		var info struct {
			Return json.RawMessage `json:"return"`
		}
		if json.Unmarshal(answer, &info) == nil && len(info.Return) < 4096 {
			a.says = string(info.Return)
		}
	}
	close(a.up)
}

func timedOut(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// ask sends a line and returns the one that is wanted of those that come back within
// [agentEvery].
func (a *agent) ask(in *bufio.Reader, line string, delimited bool, wanted func([]byte) bool) ([]byte, error) {
	if err := a.conn.SetDeadline(time.Now().Add(agentEvery)); err != nil {
		return nil, err
	}
	if _, err := a.conn.Write([]byte(line)); err != nil {
		return nil, err
	}
	for {
		answer, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			continue // it talks nonsense
		}
		if err != nil {
			return nil, err
		}
		i := bytes.LastIndexByte(answer, 0xff)
		if i < 0 && delimited {
			continue
		}
		if answer = answer[i+1:]; wanted(answer) {
			return bytes.Clone(answer), nil
		}
	}
}

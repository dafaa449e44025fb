// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/farlink"
)

// far puts distance before a server until it is told to end, and then prints what it saw.
// delay is of a round trip ("30ms"), rate in MB/s for each connection, most the number of
// requests beyond which 503 is answered; 0 is none of each.
func far(address, target, delay, rate, most string) error {
	d, err := time.ParseDuration(delay)
	if err != nil {
		return err
	}
	mb, err := strconv.ParseFloat(rate, 64)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(most)
	if err != nil {
		return err
	}
	l, err := farlink.Listen(address, target, farlink.Options{Delay: d, Rate: int64(mb * 1e6), Busy: n > 0, Most: n})
	if err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
	<-ended
	s := l.Stats()
	l.Close()
	_, err = fmt.Printf("connections %d requests %d served %d refused %d fetched %d\n", s.Connections, s.Requests, s.Served, s.Refused, s.Fetched)
	return err
}

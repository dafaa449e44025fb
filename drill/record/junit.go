// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"time"
)

// The shape of JUnit's XML, as most programs read it.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Time      string      `xml:"time,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Hostname  string      `xml:"hostname,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		Classname string        `xml:"classname,attr"`
		Time      string        `xml:"time,attr"`
		Skipped   *junitMessage `xml:"skipped"`
		Error     *junitMessage `xml:"error"`
		Failure   *junitMessage `xml:"failure"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr,omitempty"`
		Text    string `xml:",chardata"`
	}
)

// JUnit is a run as JUnit's XML: a suite for each checkpoint, a case for each step. A
// required step that was skipped is an error there, since programs take skipped for fine.
func JUnit(run *Run) ([]byte, error) {
	out := junitSuites{Name: "imgbackup drill", Time: seconds(run.Ended.Sub(run.Begun))}
	for i := range run.Drills {
		s := junitOf(&run.Drills[i].Record)
		out.Tests, out.Failures, out.Errors = out.Tests+s.Tests, out.Failures+s.Failures, out.Errors+s.Errors
		out.Suites = append(out.Suites, s)
	}
	if run.Verdict != VerdictPassed && out.Failures+out.Errors == 0 {
		// Something has cut it off: what was done until then may all have passed.
		out.Tests, out.Errors = out.Tests+1, out.Errors+1
		out.Suites = append(out.Suites, junitSuite{
			Name: "run", Tests: 1, Errors: 1, Time: seconds(0), Timestamp: run.Ended.UTC().Format("2006-01-02T15:04:05"),
			Cases: []junitCase{{Name: "run", Classname: "run", Time: seconds(0),
				Error: &junitMessage{Message: "the run did not come to its end", Type: string(run.Verdict)}}},
		})
	}
	var b bytes.Buffer
	b.WriteString(xml.Header)
	enc := xml.NewEncoder(&b)
	enc.Indent("", "  ")
	if err := enc.Encode(out); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func junitOf(r *Record) junitSuite {
	s := junitSuite{
		Name: r.Domain + "/" + r.Checkpoint, Time: seconds(r.Ended.Sub(r.Begun)),
		Timestamp: r.Begun.UTC().Format("2006-01-02T15:04:05"), Hostname: r.Host.Name,
	}
	required := make(map[string]bool)
	for _, name := range r.Required {
		required[name] = true
	}
	for _, step := range r.Steps {
		c := junitCase{Name: step.Step, Classname: s.Name, Time: seconds(time.Duration(step.Duration) * time.Millisecond)}
		m := &junitMessage{Message: step.Reason, Text: step.WhatToDo}
		switch {
		case step.Status == Failed:
			m.Type = "failed"
			c.Failure = m
			s.Failures++
		case step.Status == Skipped && required[step.Step]:
			m.Type = "skipped"
			c.Error = m
			s.Errors++
		case step.Status == Skipped:
			c.Skipped = m
			s.Skipped++
		}
		delete(required, step.Step)
		s.Cases = append(s.Cases, c)
	}
	for _, name := range r.Required {
		if required[name] { // it was not done at all
			s.Errors++
			s.Cases = append(s.Cases, junitCase{Name: name, Classname: s.Name, Time: seconds(0),
				Error: &junitMessage{Message: "the step was required, and not done", Type: "missing"}})
		}
	}
	s.Tests = len(s.Cases)
	return s
}

func seconds(d time.Duration) string { return strings.TrimSpace(fmt.Sprintf("%.3f", d.Seconds())) }

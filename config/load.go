// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile is the largest file that is read, and maxFiles how many.
const (
	maxFile  = 4 << 20
	maxFiles = 1000
)

// Problem is something that is wrong, or that a warning is about.
type Problem struct {
	File string
	Line int // 0: the file as a whole
	Text string
}

func (p Problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// Problems are all that is wrong, in the order of files and lines.
type Problems []Problem

func (ps Problems) Error() string {
	var all []string
	for _, p := range ps {
		all = append(all, p.Error())
	}
	return strings.Join(all, "\n")
}

// Load reads the configuration in a file, and what *.yaml in the folder conf.d beside it
// add. What is wrong is all in the error, of type [Problems]; warnings are about what is
// not.
func Load(path string) (c *Config, warnings Problems, err error) {
	more, err := parts(path)
	if err != nil {
		return nil, nil, err
	}
	l := &loader{places: make(map[string]place)}
	for _, name := range append([]string{path}, more...) {
		data, err := read(name)
		if err != nil {
			return nil, nil, err
		}
		l.add(name, data)
	}
	return l.finish()
}

// Parse reads a configuration in one piece; name is what errors call it.
func Parse(name string, data []byte) (c *Config, warnings Problems, err error) {
	l := &loader{places: make(map[string]place)}
	l.add(name, data)
	return l.finish()
}

// parts are the files that belong to a configuration's, in the order of their names.
func parts(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("%s: there are more than %d files", dir, maxFiles)
	}
	return names, nil
}

func read(name string) (data []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if data, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, maxFile)
	}
	return data, nil
}

// place is where something was written.
type place struct {
	file string
	line int
}

// loader gathers what several files say.
type loader struct {
	all      Config
	files    []parsed
	places   map[string]place // of what is defined, as "job nightly"
	problems Problems
	form     Problems // those of form and values
	unread   bool     // a file is no YAML: what it defines is not known
}

// parsed is a file that is YAML.
type parsed struct {
	name string
	root *yaml.Node
}

// add takes what one file says.
func (l *loader) add(name string, data []byte) {
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return // it is empty, or all comments
	case err != nil:
		l.unread = true
		l.wrongYAML(name, err)
		return
	}
	if !errors.Is(d.Decode(new(yaml.Node)), io.EOF) {
		l.unread = true
		l.wrong(name, 0, "there is more than one document in it")
		return
	}
	if len(doc.Content) != 1 {
		return
	}
	root := doc.Content[0]
	l.files = append(l.files, parsed{name, root})
	l.checkForm(name, root)
	told := len(l.problems)
	var c Config
	if err := root.Decode(&c); err != nil {
		l.wrongYAML(name, err)
	}
	l.onlyNew(told)
	l.merge(name, root, &c)
}

// onlyNew leaves out problems since told about lines of which something was told before: what is
// wrong with the form of a value is wrong with the value.
func (l *loader) onlyNew(told int) {
	before := l.problems[:told:told]
	l.problems = append(before, slices.DeleteFunc(l.problems[told:], func(p Problem) bool {
		return slices.ContainsFunc(before, func(b Problem) bool { return b.File == p.File && (b.Line == p.Line || p.Line == 0) })
	})...)
}

// merge adds what c, of a file, defines.
func (l *loader) merge(file string, root *yaml.Node, c *Config) {
	l.once(file, root, "state", c.State, &l.all.State)
	l.once(file, root, "definitions", c.Definitions, &l.all.Definitions)
	if c.History != 0 && l.first(file, root, "history") {
		l.all.History = c.History
	}
	if c.Metrics != nil && l.first(file, root, "metrics") {
		l.all.Metrics = c.Metrics
	}
	if c.Clone != nil && l.first(file, root, "clone") {
		l.all.Clone = c.Clone
	}
	mergeMap(l, file, root, "repositories", c.Repositories, &l.all.Repositories)
	mergeMap(l, file, root, "domains", c.Domains, &l.all.Domains)
	mergeMap(l, file, root, "jobs", c.Jobs, &l.all.Jobs)
	mergeMap(l, file, root, "notices", c.Notices, &l.all.Notices)
}

func (l *loader) once(file string, root *yaml.Node, key, value string, to *string) {
	if value != "" && l.first(file, root, key) {
		*to = value
	}
}

func mergeMap[V any](l *loader, file string, root *yaml.Node, key string, from map[string]V, to *map[string]V) {
	for name, v := range from {
		if l.first(file, root, key, name) {
			if *to == nil {
				*to = make(map[string]V)
			}
			(*to)[name] = v
		}
	}
}

// first reports whether what stands at a path is said for the first time; if not, that is
// wrong.
func (l *loader) first(file string, root *yaml.Node, path ...string) bool {
	line := lineOf(root, path)
	key := strings.Join(path, ".")
	if p, ok := l.places[key]; ok {
		l.wrong(file, line, "%s: that is in %s:%d already", key, p.file, p.line)
		return false
	}
	l.places[key] = place{file, line}
	return true
}

func (l *loader) wrong(file string, line int, format string, args ...any) {
	l.problems = append(l.problems, Problem{file, line, fmt.Sprintf(format, args...)})
}

// wrongYAML takes what the library says of a file: lines, and then words.
func (l *loader) wrongYAML(file string, err error) {
	var typed *yaml.TypeError
	if errors.As(err, &typed) {
		for _, text := range typed.Errors {
			l.wrongLine(file, text)
		}
		return
	}
	l.wrongLine(file, strings.TrimPrefix(err.Error(), "yaml: "))
}

func (l *loader) wrongLine(file, text string) {
	line := 0
	if n, err := fmt.Sscanf(text, "line %d: ", &line); n == 1 && err == nil {
		_, text, _ = strings.Cut(text, ": ")
	}
	l.wrong(file, line, "%s", text)
}

// finish looks at all of it together.
func (l *loader) finish() (*Config, Problems, error) {
	c := &l.all
	if !l.unread {
		l.checkMeaning()
	}
	if len(l.problems) > 0 {
		order(l.problems)
		return nil, nil, l.problems
	}
	warnings := l.warn()
	c.complete()
	return c, warnings, nil
}

// order sorts by files, as they were first met, and lines.
func order(ps Problems) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.File != b.File {
			return 0
		}
		return a.Line - b.Line
	})
}

// lineOf is the line of what stands at a path of keys below a node, or of the nearest
// thing above it that is there.
func lineOf(node *yaml.Node, path []string) int {
	line := node.Line
	for _, key := range path {
		at, value := child(node, key)
		if value == nil {
			break
		}
		node, line = value, at.Line
	}
	return line
}

// within reports whether a line is one of what stands at a path of keys below a node, or of the
// nearest thing above it that is there.
func within(node *yaml.Node, path []string, line int) bool {
	first := lineOf(node, path)
	for _, key := range path {
		_, value := child(node, key)
		if value == nil {
			break
		}
		node = value
	}
	return first <= line && line <= lastLine(node)
}

// lastLine is the last line on which something of a node begins.
func lastLine(node *yaml.Node) int {
	line := node.Line
	for _, c := range node.Content {
		line = max(line, lastLine(c))
	}
	return line
}

// child is what a node has under a key, or as an element: where it begins, and its value;
// nil: nothing.
func child(node *yaml.Node, key string) (at, value *yaml.Node) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == key {
				return node.Content[i], node.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		var i int
		if n, err := fmt.Sscanf(key, "%d", &i); n == 1 && err == nil && i < len(node.Content) {
			return node.Content[i], node.Content[i]
		}
	}
	return nil, nil
}

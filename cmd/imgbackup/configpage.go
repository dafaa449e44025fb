// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/imgbackup/imgbackup/config"
)

// writeConfigPage writes the page of the configuration's file.
func writeConfigPage(dir string) error {
	return os.WriteFile(filepath.Join(dir, "imgbackup-config.5"), md2man.Render([]byte(configText())), 0o644)
}

// configText is the page of the configuration's file, in Markdown.
func configText() string {
	var b strings.Builder
	b.WriteString(`% "IMGBACKUP-CONFIG" "5" "Nov 2026" "imgbackup" ""

# NAME
imgbackup-config - what is backed up, to where, and when

# SYNOPSIS
/etc/imgbackup/config.yaml, /etc/imgbackup/conf.d/*.yaml

# DESCRIPTION
The file is YAML. --config and IMGBACKUP_CONFIG name another one; conf.d is beside it. Files are read in the order of
their names, and add to one another: nothing may be defined twice. Keys that are not known are errors.
**imgbackup config check** tells all that is wrong, **imgbackup config show** what is in force.

A time is written as 90s, 30m, 26h, 7d or 2w; of retention as 30d, 1y6m or 12h (m is a month there). A size is written
as 50M or 10GiB. A secret is named, not written: {file: PATH} (its first line), {credential: NAME} (of the systemd
unit), {environment: VARIABLE}; {value: TEXT} is taken, and warned about.

# KEYS
`)
	for _, k := range config.Keys() {
		what := k.Values
		if k.Required {
			what = strings.TrimPrefix(what+"; required", "; ")
		}
		if what != "" {
			what = " (" + what + ")"
		}
		fmt.Fprintf(&b, "**%s**%s: %s\n\n", k.Path, what, strings.ReplaceAll(k.Description, "*", `\*`))
	}
	fmt.Fprintf(&b, "# EXAMPLE\n\n    %s\n", strings.ReplaceAll(strings.TrimSpace(string(config.Example())), "\n", "\n    "))
	b.WriteString("\n# SEE ALSO\n**imgbackup-run(1)**, **imgbackup-status(1)**, **imgbackup-config(1)**\n")
	return b.String()
}

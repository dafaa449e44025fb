// SPDX-License-Identifier: Apache-2.0

package main

import "runtime/debug"

// version is what the module's build information says.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "0.1.0-dev"
	}
	return info.Main.Version
}

// tool is what manifests say of the program that made them.
func tool() string { return "imgbackup " + version() }

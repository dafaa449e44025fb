# SPDX-License-Identifier: Apache-2.0
GO ?= go
TOOLS := $(CURDIR)/.cache/bin
GOLANGCI := v2.15.0

ARCHITECTURES := amd64 arm64 ppc64le riscv64 s390x

.PHONY: all build test browser race lint demo bench man fuzz clean deps servers cross bigendian debian13

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o imgbackup ./cmd/imgbackup

# What the tests run: more than the program needs.
deps:
	@scripts/need qemu-img qemu-io qemu-nbd nbdinfo nbdcopy nbdsh nbdkit qemu-system-x86_64 swtpm swtpm_setup virsh libvirtd mkfs.ext4 guestfish /sbin/mkfs.vfat /sbin/cryptsetup /sbin/sfdisk zstd jq age age-keygen openssl ssh-keygen xmllint /usr/share/libvirt/schemas/domain.rng
	@scripts/guest-kernel

# What looks at pages.
browser:
	@scripts/need chromium
	@scripts/axe

# The S3 servers that tests run against: built once, which takes some minutes.
servers:
	@scripts/s3-servers

PACKAGES ?= ./...
test: deps servers $(if $(filter ./...,$(PACKAGES)),browser)
	$(GO) vet ./...
	scripts/gotest $(TESTFLAGS) $(PACKAGES)

race: TESTFLAGS = -race
race: test

# The program on every architecture that KVM is at home on, built and vetted.
cross:
	set -e; for arch in $(ARCHITECTURES); do \
	  echo "build and vet for $$arch"; \
	  CGO_ENABLED=0 GOARCH=$$arch $(GO) build -o /dev/null ./cmd/imgbackup; \
	  CGO_ENABLED=0 GOARCH=$$arch $(GO) vet ./...; \
	done

# What reads and writes stored bytes, on a big-endian machine. Left out is a test that
# starts itself anew, which an emulated program can't where the kernel knows no binfmt.
bigendian:
	@scripts/need qemu-s390x-static qemu-img qemu-io qemu-nbd nbdinfo nbdcopy nbdsh zstd jq age age-keygen openssl ssh-keygen
	CGO_ENABLED=0 GOARCH=s390x scripts/gotest -exec qemu-s390x-static -skip '^TestBitmapAddInterrupted$$' ./archive/... ./chain ./chain/check ./chain/transfer ./clustermap ./qcow2/... ./bitmapstore/... ./nbd/...

# The same demo with Debian 13's QEMU, libvirt, libnbd and libguestfs, and the tests of what
# has to do with them; what passed with the host's counts for nothing here.
debian13: servers
	scripts/debian13 make demo test TESTFLAGS=-count=1 PACKAGES="./backup/... ./cmd/... ./domain ./drill/... ./foreign ./guestfs/... ./internal/outfile ./machine/... ./nbd/... ./qcow2/... ./qemu/... ./restore/... ./serve/... ./view/..."

lint: $(TOOLS)/golangci-lint-$(GOLANGCI)
	$< run ./...

$(TOOLS)/golangci-lint-$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(TOOLS)/golangci-lint $@

demo: build
	@scripts/need qemu-img qemu-io
	scripts/demo

bench: build
	scripts/bench

man: build
	mkdir -p docs/man
	./imgbackup man docs/man

# Each fuzz target for FUZZTIME (not part of the tests).
FUZZTIME ?= 30s
fuzz:
	scripts/fuzz $(FUZZTIME)

clean:
	rm -rf imgbackup bench-work .cache

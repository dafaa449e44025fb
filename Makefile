# SPDX-License-Identifier: Apache-2.0
GO ?= go
TOOLS := $(CURDIR)/.cache/bin
GOLANGCI := v2.15.0

.PHONY: all build test race lint demo bench man fuzz clean deps servers

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o imgbackup ./cmd/imgbackup

# What the tests run: more than the program needs.
deps:
	@scripts/need qemu-img qemu-io qemu-nbd nbdinfo nbdcopy nbdsh nbdkit qemu-system-x86_64 mkfs.ext4 zstd jq xmllint /usr/share/libvirt/schemas/domain.rng
	@scripts/guest-kernel

# The S3 servers that tests run against: built once, which takes some minutes.
servers:
	@scripts/s3-servers

test: deps servers
	$(GO) vet ./...
	scripts/gotest $(TESTFLAGS) ./...

race: TESTFLAGS = -race
race: test

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

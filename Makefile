# SPDX-License-Identifier: Apache-2.0
GO ?= go
TOOLS := $(CURDIR)/.cache/bin
GOLANGCI := v2.15.0
NFPM := v2.45.2

ARCHITECTURES := amd64 arm64 ppc64le riscv64 s390x

.PHONY: all build test test-ci browser race lint demo bench man fuzz sbom vulnerabilities clean deps servers cross bigendian debian13 packages packages-test

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o imgbackup ./cmd/imgbackup

# What the tests run: more than the program needs.
deps:
	@scripts/need qemu-img qemu-io qemu-nbd nbdinfo nbdcopy nbdsh nbdkit virtnbdbackup strace fusermount3 curl mkfs.xfs mkfs.btrfs /usr/lib/$$(uname -m)-linux-gnu/qemu/block-curl.so qemu-system-x86_64 swtpm swtpm_setup /usr/share/OVMF/OVMF_VARS_4M.fd virsh libvirtd /usr/lib/$$(uname -m)-linux-gnu/libvirt/connection-driver/libvirt_driver_network.so /usr/lib/$$(uname -m)-linux-gnu/libvirt/connection-driver/libvirt_driver_secret.so systemd-analyze promtool /usr/lib/python3/dist-packages/aiosmtpd mkfs.ext4 guestfish /sbin/mkfs.vfat /sbin/cryptsetup /sbin/sfdisk zstd jq age age-keygen openssl ssh-keygen xmllint /usr/share/libvirt/schemas/domain.rng
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

# The program on every architecture that KVM is at home on, built (as for packages) and vetted; the tests vet this one.
cross:
	set -e; for arch in $(ARCHITECTURES); do \
	  echo "build and vet for $$arch"; \
	  CGO_ENABLED=0 GOFLAGS=-trimpath GOARCH=$$arch $(GO) build -o /dev/null ./cmd/imgbackup; \
	  [ $$arch = $$($(GO) env GOARCH) ] || CGO_ENABLED=0 GOFLAGS=-trimpath GOARCH=$$arch $(GO) vet ./...; \
	done

# What reads and writes stored bytes, on a big-endian machine. Left out is a test that
# starts itself anew, which an emulated program can't where the kernel knows no binfmt.
bigendian:
	@scripts/need qemu-s390x-static qemu-img qemu-io qemu-nbd nbdinfo nbdcopy nbdsh zstd jq age age-keygen openssl ssh-keygen
	CGO_ENABLED=0 GOARCH=s390x scripts/gotest -exec qemu-s390x-static -skip '^TestBitmapAddInterrupted$$' ./archive/... ./chain ./chain/check ./chain/transfer ./clustermap ./qcow2/... ./bitmapstore/... ./nbd/...

# Tests of the command line that are about stores, keys and pruning, whatever QEMU there is.
STORES := ^Test(Tampered|Secrets|Fleet|EncryptedScripts|HostTaken.*|Mutants|RecoverByHand.*|.*S3.*|Prune.*|Purge.*|ForgetKilled|RepairKilled|RotateAfterKilled|.*CheckpointsAreKnown|RequestsAreFew|FirstByteIsNear|IncrementIsNear|SlowClients|RepositoryReplaced|Revisions|Portals|Policies|DoctorBuckets)\b

# All tests in the time that CI has: packages, and the scripts of the command line, look for races; what is about stores
# does not; and the rest of the command line's tests is left to debian13.
test-ci: deps servers browser
	$(MAKE) test TESTFLAGS=-race PACKAGES="$$($(GO) list ./... | grep -v '/cmd/' | tr '\n' ' ')"
	$(MAKE) test TESTFLAGS="-race -run '^TestScripts'" PACKAGES=./cmd/...
	$(MAKE) test TESTFLAGS="-run '$(STORES)|Libvirt'" PACKAGES=./cmd/...

# The same demo with Debian 13's QEMU, libvirt, libnbd and libguestfs, and the tests of what
# has to do with them; what passed with the host's counts for nothing here.
debian13: servers
	scripts/debian 13 make demo test TESTFLAGS="-count=1 -skip '$(STORES)'" PACKAGES="./backup/... ./cmd/... ./domain ./drill/... ./foreign ./guestfs/... ./internal/outfile ./machine/... ./nbd/... ./qcow2/... ./qemu/... ./restore/... ./serve/... ./view/..."

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

# Each fuzz target for FUZZTIME (not part of the tests). CI has time for a few seconds of some of
# them in a run, others each day (FUZZ_OF=10).
FUZZTIME ?= 30s
fuzz:
	scripts/fuzz $(FUZZTIME)

# What is given to others: deb, rpm and tarball for each architecture, into packages/. The same
# commit gives the same bytes, which packages-test shows; it installs them, too.
packages: $(TOOLS)/nfpm-$(NFPM)
	@scripts/need jq
	NFPM=$< scripts/packages packages $(ARCHITECTURES)

DEBIANS := 12 13
packages-test: $(TOOLS)/nfpm-$(NFPM)
	@scripts/need jq
	NFPM=$< ARCHITECTURES="$(ARCHITECTURES)" scripts/packages-test $(DEBIANS)

$(TOOLS)/nfpm-$(NFPM):
	GOBIN=$(TOOLS) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)
	mv $(TOOLS)/nfpm $@

# What the program is made of, as CycloneDX, and what is known of that.
sbom: build
	@scripts/sbom

vulnerabilities:
	@scripts/vulnerabilities

clean:
	rm -rf imgbackup bench-work packages .cache

# The only entry point. `make help` lists every target.

SHELL       := /bin/sh
HOST        := $(shell rustc -vV | sed -n 's/^host: //p')
TRIPLE_ENV  := $(shell echo '$(HOST)' | tr 'a-z-' 'A-Z_')
MULTIARCH   := $(shell dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch 2>/dev/null || echo $$(uname -m)-linux-gnu)
CARGO_DIR   := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
OUT         := $(CURDIR)/target/release
PREFIX      ?= /usr/local
DESTDIR     ?=

# Our binaries run on nodes of any age and inside other root file systems: nothing of them is looked up at run time.
STATIC_ENV  := CARGO_TARGET_$(TRIPLE_ENV)_RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
               LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(MULTIARCH)

BUILD_NEEDS := gcc:gcc pkg-config:pkg-config :libc6-dev :libseccomp-dev
TEST_NEEDS  := containerd:containerd ctr:containerd runc:runc crun:crun strace:strace :busybox-static tar:tar
# What only some tests need; without it they say so and are skipped.
MORE_NEEDS  := time:time dockerd:docker.io docker-init:tini podman:podman conmon:conmon catatonit:catatonit newuidmap:uidmap

.PHONY: help build install deb check test test-unit test-integration faults test-faults test-v2 demo bench bench-v2 museum clean tools
.PHONY: build-needs test-needs

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: build-needs ## release binaries, fully static, in target/release
	$(STATIC_ENV) cargo build --release --locked --target $(HOST) -p holdfast -p holdfast-shim
	@mkdir -p $(OUT)
	@for b in holdfast containerd-shim-holdfast-v2; do \
		cp -f "$(CARGO_DIR)/$(HOST)/release/$$b" "$(OUT)/.$$b.new" && mv -f "$(OUT)/.$$b.new" "$(OUT)/$$b" || exit 1; \
		echo "$(OUT)/$$b: $$(stat -c %s "$(OUT)/$$b") bytes"; \
	done

install: ## put binaries, man pages and examples under DESTDIR and PREFIX (run `make build` first)
	@test -x $(OUT)/holdfast -a -x $(OUT)/containerd-shim-holdfast-v2 || { echo "nothing to install: run 'make build' first" >&2; exit 1; }
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(OUT)/holdfast $(OUT)/containerd-shim-holdfast-v2
	@for page in packaging/man/*.[0-9]; do \
		section=$${page##*.}; \
		install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man$$section $$page || exit 1; \
	done
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/holdfast packaging/*.toml packaging/*.yaml packaging/*.md

deb: build ## a Debian package of the release binaries, in target/
	@packaging/deb/build.sh $(OUT) $(CURDIR)/target

check: build-needs ## formatting, lints, licences, and the rules of the house
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny check; \
	else echo "cargo-deny is not installed: licences and advisories are NOT checked in this run"; fi
	cargo test --locked -p holdfast-integration --test house

test: ## every test: unit, then black-box against real containerd, then the runtime on cgroup v2
	@$(MAKE) --no-print-directory --keep-going test-unit test-integration test-faults test-v2

test-unit: build-needs ## tests that need no containerd
	cargo test --locked --no-fail-fast --workspace --exclude holdfast-integration

test-integration: build test-needs tools ## black-box tests of the built binaries against containerd 1.6 and 2.1
	cargo test --locked --no-fail-fast -p holdfast-integration

faults: build ## a shim for tests that fails on order, in target/faults; no release has the fault points
	CARGO_PROFILE_DEV_PANIC=unwind cargo build --locked -p holdfast-shim --features fault-points
	@mkdir -p target/faults && cp -f $(CARGO_DIR)/debug/containerd-shim-holdfast-v2 $(OUT)/holdfast target/faults/

test-faults: faults test-needs tools ## the shim fails at every step
	HOLDFAST_BIN_DIR=$(CURDIR)/target/faults cargo test --locked --no-fail-fast -p holdfast-integration --test faults

test-v2: build ## the runtime's tests on pure cgroup v2 with systemd, in a booted kernel (TESTS= picks some)
	@integration/uml.sh $(TESTS)
	@$(if $(TESTS),,CGROUPS=v1 integration/uml.sh runtime_systemd && CGROUPS=hybrid integration/uml.sh runtime_systemd)
	@$(if $(TESTS),,integration/shutdown.sh)

demo: build test-needs ## a container from start to end under a private containerd, every step checked
	integration/demo.sh

bench: build test-needs tools ## side by side with runc and crun: time, system calls, memory
	cargo run --quiet --locked --profile harness -p holdfast-integration --bin bench

bench-v2: build ## the benchmark's counts and times on pure cgroup v2, in the same booted kernel
	@integration/uml.sh bench 10 lives first floor parallel calls

museum: faults test-needs tools ## what broke other shims, done to containerd's own shim and to ours, as a table
	cargo run --quiet --locked --profile harness -p holdfast-integration --bin museum

tools: ## fetch containerd 2.1 into tools/ (unpacked there, not installed)
	@integration/tools.sh || echo "tools: containerd 2.1 could not be had: tests that need it will say so and be skipped"

clean: ## remove what was built and fetched
	cargo clean
	rm -rf target tools

build-needs:
	@integration/packages.sh $(BUILD_NEEDS)

test-needs:
	@integration/packages.sh $(TEST_NEEDS)
	@integration/packages.sh $(MORE_NEEDS) || echo "docker or podman could not be had: tests that need them will say so and be skipped"

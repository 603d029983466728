# Two commands do everything: `make lab` shows it, `make test` proves it.

# Debian packages, by target. `make fresh` finds out when one is not named here.
lab_packages   := gcc libc6-dev iproute2 iputils-ping mount nftables tcpdump util-linux
# The etcd client is generated from etcd's own interface files: protoc, and what these import.
build_packages := gcc libc6-dev protobuf-compiler libprotobuf-dev
check_packages := $(build_packages) procps systemd
test_packages  := $(lab_packages) $(build_packages) iptables procps systemd etcd-server etcd-client openssl faketime uidmap
fuzz_packages  := gcc g++ libc6-dev
fresh_packages := git mmdebstrap mount util-linux
# The last commit that knew no store but a directory.
EARLIER ?= 1c0414a
# How to become root for apt: not at all, or by sudo without a question.
AS_ROOT  := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
# Where rustup puts cargo, and where Debian hides bridge and nft from ordinary users.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

PACKAGES := $(addprefix packages-,lab build check test fuzz)
.PHONY: lab picture fresh test test-etcd soak hostile fuzz fuzz-planted upgrade bench-scale bench-churn bench-probe check golden install clean bench-build toolchain $(PACKAGES)

## Show a pod network that repairs itself: real namespaces, real kernel, real daemon (its store is a directory: no etcd).
lab: toolchain packages-lab
	@scripts/progress "building the daemon and the lab" cargo build --quiet --locked --target-dir target -p twill -p lab --no-default-features
	@target/debug/twill-lab demo

## Draw docs/demo.svg, the picture in the README, from a real run of the demo.
picture: toolchain packages-lab
	@scripts/progress "building the daemon and the lab" cargo build --quiet --locked --target-dir target -p twill -p lab --no-default-features
	@target/debug/twill-lab demo --picture docs/demo.svg

## Run a target, `lab` by default, on a minimal Debian of its own with a clone of HEAD: TARGET=test for another. Needs root.
fresh:
	@scripts/fresh $(or $(TARGET),lab) $(fresh_packages)

## Run every test.
test: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked --workspace --no-run
	@scripts/tests cargo test --locked --workspace --no-fail-fast

## Run the tests of etcd with other versions than Debian's, built from their Go modules: ETCD_VERSIONS='3.6.16' for some.
ETCD_VERSIONS ?= 3.5.35 3.6.16 3.7.3
test-etcd: toolchain packages-test
	@for version in $(ETCD_VERSIONS); do \
		etcd=$$(scripts/etcd $$version) && echo "etcd $$version" && \
		ETCD=$$etcd PATH=$$(dirname $$etcd):$$PATH cargo test --locked -p store --features etcd --test etcd && \
		ETCD=$$etcd cargo test --locked -p twill --test e2e -- etcd:: etcd_faults:: || exit 1; \
	done

## What takes its time: a path that flaps for two minutes, healthy and busy nodes for ten minutes each; 25 minutes.
soak: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked -p twill --test e2e --no-run
	@TWILL_SOAK=1 cargo test --locked -p twill --test e2e -- a_way_that_flaps calm::

## Attack running daemons, as SECURITY.md's table of attackers has it; a few minutes.
hostile: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked -p twill --test e2e --no-run
	@cargo test --locked -p twill --test e2e -- hostile::

## Fuzz every parser of data from outside: SECONDS=600 for ten minutes in all. An input that makes one panic is in fuzz/findings.
SECONDS := 30
fuzz: toolchain packages-fuzz
	@scripts/fuzz $(SECONDS)

## Show that fuzzing finds panics: plants one in each parser of a copy of the tree.
fuzz-planted: toolchain packages-fuzz
	@scripts/fuzz-planted 60

## Upgrade a running node from an earlier commit to this one and back: EARLIER=1c0414a (it needs the history).
upgrade: toolchain packages-test
	@scripts/earlier $(EARLIER) target/earlier
	@TWILL_EARLIER=$(CURDIR)/target/earlier/bin/twill cargo test --locked -p twill --test upgrade

## Measure a start among 1,000 to 50,000 peers, and single changes: BENCH='--peers 1000,10000 --store dir' for a part; two hours.
bench-scale: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench scale $(BENCH)

## Measure nodes that come and go among 5,000, and restarts among 10,000: BENCH='--backend vxlan' for a part; five minutes.
bench-churn: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench churn $(BENCH)

## Measure what it costs to ask 5,000 peers that answer, and `twill status`: BENCH='--peers 10000' for more; ten minutes.
bench-probe: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench probe $(BENCH)

## Formatting, lints, budgets, the unit file, licences.
check: toolchain packages-check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features --quiet -- -D warnings
	cargo clippy --locked -p twill --no-default-features --quiet -- -D warnings
	cargo run --locked --quiet -p tidy
	@scripts/check-unit
	@! command -v cargo-deny >/dev/null || cargo deny check licenses bans sources

## Rewrite the expected files of the golden cases; read the diff before committing it.
golden: toolchain packages-build
	GOLDEN=update cargo test --locked -p plan --test golden

## Install the binary, the service, and the names of our routing table and protocol for ip(8).
install: toolchain packages-build
	cargo build --release --locked --target-dir target -p twill
	install -D -m 0755 target/release/twill $(DESTDIR)/usr/local/bin/twill
	install -D -m 0644 deploy/twill.service $(DESTDIR)/usr/local/lib/systemd/system/twill.service
	install -D -m 0644 deploy/iproute2/rt_tables.conf $(DESTDIR)/etc/iproute2/rt_tables.d/twill.conf
	install -D -m 0644 deploy/iproute2/rt_protos.conf $(DESTDIR)/etc/iproute2/rt_protos.d/twill.conf

clean:
	cargo clean

# What is measured is what `make install` installs.
bench-build: toolchain
	@scripts/progress "building the daemon as it is installed, and the lab" \
		sh -c 'cargo build --quiet --release --locked --target-dir target -p twill && cargo build --quiet --locked --target-dir target -p lab'

toolchain:
	@command -v rustup >/dev/null || { echo "Rust is missing: apt-get install curl && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"; exit 1; }

$(PACKAGES): packages-%:
	@scripts/apt-packages "$(AS_ROOT)" $($*_packages)

# The two main targets: `make lab` shows twill at work, `make test` proves it. CONTRIBUTING.md lists all targets.

# Debian packages that the targets need. `make fresh` fails if one is missing here.
lab_packages   := gcc libc6-dev iproute2 iputils-ping mount nftables tcpdump util-linux
# The build generates the etcd client from etcd's own interface files, with protoc and the files that they import.
build_packages := gcc libc6-dev protobuf-compiler libprotobuf-dev
check_packages := $(build_packages) g++ procps systemd
test_packages  := $(lab_packages) $(build_packages) iptables procps systemd etcd-server etcd-client openssl faketime uidmap
fuzz_packages  := gcc g++ libc6-dev
fresh_packages := git mmdebstrap mount util-linux
# Last commit whose only store was a directory.
EARLIER ?= 1c0414a
# Prefix that makes apt-get run as root: empty for root, otherwise sudo without a password prompt.
AS_ROOT  := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
# Directories of cargo (rustup), and of bridge and nft, which Debian leaves out of an ordinary user's PATH.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

PACKAGES := $(addprefix packages-,lab build check test fuzz)
.PHONY: lab picture fresh test test-etcd soak hostile fuzz fuzz-planted upgrade bench-scale bench-churn bench-probe check golden install clean bench-build toolchain $(PACKAGES)

## Show a pod network that repairs itself, on the real kernel, with the real daemon. Its store is a directory, so it needs no etcd.
lab: toolchain packages-lab
	@scripts/progress "building the daemon and the lab" cargo build --quiet --locked --target-dir target -p twill -p lab --no-default-features
	@target/debug/twill-lab demo

## Draw docs/demo.svg, the picture in README.md, from a real run of the demonstration.
picture: toolchain packages-lab
	@scripts/progress "building the daemon and the lab" cargo build --quiet --locked --target-dir target -p twill -p lab --no-default-features
	@target/debug/twill-lab demo --picture docs/demo.svg

## Run `make lab` on a minimal Debian with a clone of HEAD; TARGET=test runs another target. Needs root.
fresh:
	@scripts/fresh $(or $(TARGET),lab) $(fresh_packages)

## Run every test.
test: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked --workspace --no-run
	@scripts/tests cargo test --locked --workspace --no-fail-fast

## Run the tests of etcd with other versions than Debian's, built from their Go modules. ETCD_VERSIONS='3.6.16' chooses versions.
ETCD_VERSIONS ?= 3.5.35 3.6.16 3.7.3
test-etcd: toolchain packages-test
	@for version in $(ETCD_VERSIONS); do \
		etcd=$$(scripts/etcd $$version) && echo "etcd $$version" && \
		ETCD=$$etcd PATH=$$(dirname $$etcd):$$PATH cargo test --locked -p store --features etcd --test etcd && \
		ETCD=$$etcd cargo test --locked -p twill --test e2e -- etcd:: etcd_faults:: || exit 1; \
	done

## Run long tests: a path that flaps for two minutes, healthy and busy nodes for ten minutes each. Takes 25 minutes.
soak: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked -p twill --test e2e --no-run
	@TWILL_SOAK=1 cargo test --locked -p twill --test e2e -- a_flapping_path calm::

## Attack running daemons as the attackers in SECURITY.md would. Takes a few minutes.
hostile: toolchain packages-test
	@scripts/progress "building the tests" cargo test --quiet --locked -p twill --test e2e --no-run
	@cargo test --locked -p twill --test e2e -- hostile::

## Fuzz every parser of data from outside, for 30 s in all; SECONDS=600 fuzzes for ten minutes. Inputs that cause a panic are kept in fuzz/findings.
SECONDS := 30
fuzz: toolchain packages-fuzz
	@scripts/fuzz $(SECONDS)

## Show that fuzzing finds panics: plant one in each parser of a copy of the tree, and find it. Takes three minutes.
fuzz-planted: toolchain packages-fuzz
	@scripts/fuzz-planted 60

## Test the upgrade of a running node from an earlier commit to this one, and back. EARLIER=1c0414a names the commit; a shallow clone lacks it.
upgrade: toolchain packages-test
	@scripts/earlier $(EARLIER) target/earlier
	@TWILL_EARLIER=$(CURDIR)/target/earlier/bin/twill cargo test --locked -p twill --test upgrade

## Measure a start among 1,000 to 50,000 peers, and single changes. Takes two hours; BENCH='--peers 1000,10000 --store dir' measures a part.
bench-scale: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench scale $(BENCH)

## Measure nodes that come and go among 5,000, and restarts among 10,000. Takes five minutes; BENCH='--backend vxlan' measures a part.
bench-churn: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench churn $(BENCH)

## Measure the cost of probing 5,000 peers that answer, and of `twill status`. Takes ten minutes; BENCH='--peers 10000' measures more.
bench-probe: toolchain packages-test bench-build
	@TWILL_BIN=$(CURDIR)/target/release/twill target/debug/twill-lab bench probe $(BENCH)

## Check formatting, lints, budgets, the unit file, planted panics and licences.
check: toolchain packages-check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features --quiet -- -D warnings
	cargo clippy --locked -p twill --no-default-features --quiet -- -D warnings
	cargo run --locked --quiet -p tidy
	@scripts/check-unit
	@scripts/fuzz-planted check
	@! command -v cargo-deny >/dev/null || cargo deny check licenses bans sources

## Write the expected files of the golden cases. Read the diff before you commit it.
golden: toolchain packages-build
	GOLDEN=update cargo test --locked -p plan --test golden

## Install the binary, the service, and the names of twill's routing table and protocol for ip(8).
install: toolchain packages-build
	cargo build --release --locked --target-dir target -p twill
	install -D -m 0755 target/release/twill $(DESTDIR)/usr/local/bin/twill
	install -D -m 0644 deploy/twill.service $(DESTDIR)/usr/local/lib/systemd/system/twill.service
	install -D -m 0644 deploy/iproute2/rt_tables.conf $(DESTDIR)/etc/iproute2/rt_tables.d/twill.conf
	install -D -m 0644 deploy/iproute2/rt_protos.conf $(DESTDIR)/etc/iproute2/rt_protos.d/twill.conf

clean:
	cargo clean

# The benchmarks measure the release build that `make install` installs.
bench-build: toolchain
	@scripts/progress "building the release daemon and the lab" \
		sh -c 'cargo build --quiet --release --locked --target-dir target -p twill && cargo build --quiet --locked --target-dir target -p lab'

toolchain:
	@command -v rustup >/dev/null || { echo "Rust is missing. Install it: apt-get install curl && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"; exit 1; }

$(PACKAGES): packages-%:
	@scripts/apt-packages "$(AS_ROOT)" $($*_packages)

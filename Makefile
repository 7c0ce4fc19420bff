# make help lists the targets.
PREFIX ?= /usr/local
BINS := vswitch vhost-net-backend vmm lab sriov
CARGO ?= cargo
# Which programs `demo` and `install` take: optimised ones, or with PROFILE=debug those of `make build`.
PROFILE ?= release
# The agent runs as the only user-space program of a guest that has no C library, so it is linked statically.
AGENT = $(CARGO) rustc --profile guest -p netyard-agent --bin netyard-agent -- -C target-feature=+crt-static

.PHONY: help demo build debug release test unit e2e lint fuzz bench docs install clean

help:
	@echo "make demo     build Netyard and run the demo lab: two Linux VMs on one switch"
	@echo "make test     install what the tests need, then run all of them"
	@echo "make unit     the fast tests alone            make e2e   the end-to-end tests alone"
	@echo "make lint     rustfmt, clippy, typos, cargo-machete, cargo-deny"
	@echo "make fuzz     every fuzz target under libFuzzer for FUZZ_SECONDS (60) each"
	@echo "make bench    measure, side by side with the peers in docs/src/performance.md"
	@echo "make docs     the book in docs/book           make install PREFIX=$(PREFIX)"

demo: $(PROFILE)
	@scripts/deps.sh run
	@scripts/demo.sh target/$(PROFILE)

build:
	@scripts/deps.sh build
	$(AGENT)
	$(CARGO) build --workspace --bins --exclude netyard-agent --exclude netyard-fuzz

debug: build

release:
	@scripts/deps.sh build
	$(AGENT)
	$(CARGO) build --release $(BINS:%=--bin %)

test: unit e2e

unit: build
	@scripts/deps.sh test
	@scripts/tools.sh test
	$(CARGO) nextest run --workspace --exclude netyard-fuzz

e2e: build
	@scripts/deps.sh test
	@scripts/tools.sh test
	$(CARGO) nextest run --workspace --exclude netyard-fuzz --profile e2e

lint:
	@scripts/deps.sh test
	@scripts/tools.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --exclude netyard-fuzz --all-targets -- -D warnings
	target/tools/bin/typos
	$(CARGO) machete
	$(CARGO) deny --log-level error check bans licenses sources

# A stable compiler has the coverage that libFuzzer is guided by; only the sanitizers need another one.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
fuzz:
	@scripts/deps.sh fuzz
	@scripts/tools.sh fuzz
	@CARGO=$(CARGO) scripts/fuzz.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

bench: release
	@scripts/deps.sh bench
	$(CARGO) build --release --bin netyard-bench
	@scripts/bench.sh target/release

docs:
	@scripts/tools.sh docs
	mdbook build docs

install: $(PROFILE)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/netyard $(DESTDIR)$(PREFIX)/share/netyard/labs
	install -m 0755 $(BINS:%=target/$(PROFILE)/%) $(DESTDIR)$(PREFIX)/bin
	install -m 0755 target/guest/netyard-agent $(DESTDIR)$(PREFIX)/libexec/netyard
	install -m 0644 topologies/labs/*.lab.yaml $(DESTDIR)$(PREFIX)/share/netyard/labs
	scripts/install-docs.sh target/$(PROFILE) $(DESTDIR)$(PREFIX)/share $(BINS)

clean:
	$(CARGO) clean

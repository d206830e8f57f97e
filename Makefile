# One command for each thing a person wants. `make help` lists them.

ARGS ?=
CARGO ?= cargo
THREADS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) \* 3 / 2 \| 1)

.PHONY: help up build test check fmt bench sim chaos planted clean

help:
	@echo "make up [ARGS='--shards 5 --feed sim']   everything on this machine, until Ctrl-C"
	@echo "make build                               target/release/arbees and the services beside it"
	@echo "make test                                all tests, on real servers started privately"
	@echo "make check                               what CI runs: format, clippy, deny, tests"
	@echo "make sim [SEEDS=100000]                  the whole plane simulated, seed by seed"
	@echo "make chaos [KILLS=100 LEADER_KILLS=20]   shards, leaders and servers killed on real processes"
	@echo "make planted                             known bugs put in: the simulation must catch each"
	@echo "make bench                               our figures beside the raw limits below them"

build:
	$(CARGO) build --release --locked --workspace --bins

up: build
	$(CARGO) run --quiet --release --locked -p arbees-cli --bin arbees -- up $(ARGS)

# The services are built with the tests, which start them as processes of their own: together, so that nothing is built twice.
# Such tests wait more than they compute: three at a time on two cores.
test:
	$(CARGO) build --locked --workspace --bins --tests
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$(THREADS)} $(CARGO) test --locked --workspace

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) fetch --locked && $(CARGO) deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: licences, bans and sources are not checked"; fi
	$(MAKE) test

fmt:
	$(CARGO) fmt --all

# Simulated worlds of ten minutes each; one that breaks a rule is named, and played again by `arbees-sim SEED`.
sim:
	$(CARGO) build --release --locked -p arbees-testkit --bin arbees-sim
	target/release/arbees-sim 0 $(or $(SEEDS),2000)

# At length: a hundred shards killed, twenty leaders while games move, and each server away or its disk full; a line for each.
chaos:
	$(CARGO) build --locked --workspace --bins --tests
	ARBEES_KILLS=$(or $(KILLS),100) ARBEES_LEADER_KILLS=$(or $(LEADER_KILLS),20) ARBEES_POSTGRES_AWAY_SECS=90 ARBEES_FLAPS=30 \
	  $(CARGO) test --locked --workspace --test e2e -- --nocapture --test-threads=1 \
	  a_killed_shards a_leader_killed redis_away nats_away postgres_away espn_away disk_full

# Known bugs, each put in and expected to be caught by the simulation.
planted:
	testkit/planted/run

bench:
	$(CARGO) build --release --locked --workspace --bins
	$(CARGO) run --release --locked -p arbees-bench -- $(ARGS)

clean:
	$(CARGO) clean
	rm -rf .cache .arbees

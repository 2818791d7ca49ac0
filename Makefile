# Everything a person or a machine does with this repository. On a fresh Debian with Go, git and make, as root or
# with sudo, each target brings along what it needs.

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PG       ?=#      Postgres major, such as 17 or 18; empty: the system's own
STORE    ?= file
ROUNDS   ?= 20
FUZZTIME ?= 20s
PKG      ?= ./...
ARGS     ?= pool
TIMEOUT  ?= 30m

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

# What the Go code learns about its surroundings: PITR_PG_BIN is the directory of initdb, postgres, pg_waldump …
# (unset: it looks for the system's own), PITR_VERSITYGW the S3 server.
use_pg = $(if $(strip $(PG)),PITR_PG_BIN="$$(scripts/pg.sh $(strip $(PG)))"; export PITR_PG_BIN;)
use_s3 = PITR_VERSITYGW="$$(scripts/versitygw.sh)"; export PITR_VERSITYGW;

.PHONY: help
help: ## show this help
	@echo 'usage: make TARGET [PG=17|18] …'
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/pitr, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/pitr ./cmd/pitr

.PHONY: demo
demo: deps-run build ## lose a table, bring it back; STORE=s3 uses a real S3 server; PG=17|18
	@$(use_pg) $(if $(filter s3,$(STORE)),$(use_s3)) bin/pitr demo $(if $(filter-out file,$(STORE)),--store $(STORE)) $(DEMO_ARGS)

.PHONY: test
test: deps-test ## every test, on real Postgres and a real S3 server; PG=17|18, PKG=./internal/…
	go vet $(PKG)
	@$(use_pg) $(use_s3) set -x; CGO_ENABLED=1 go test -race -count=1 -timeout $(TIMEOUT) $(TESTFLAGS) $(PKG)

.PHONY: torture
torture: deps-test ## random faults under full load; restores compared row by row with pg_waldump; ROUNDS=20, SEED=…, FIRST=1
	@$(use_pg) $(use_s3) export PITR_TORTURE_ROUNDS=$(ROUNDS) PITR_TORTURE_SEED=$(SEED) PITR_TORTURE_FIRST=$(FIRST); \
	scripts/matching.sh '^TestTorture' -v -race -count=1 -timeout 3h

.PHONY: seconds
seconds: deps-test ## restore to COUNT=100 instants of a server that does all that moves files about, and compare every row; PG=17|18, SEED=…
	@$(use_pg) export PITR_SECONDS=$(or $(strip $(COUNT)),100) PITR_SECONDS_SEED=$(SEED); \
	scripts/matching.sh '^TestAnySecond' -v -count=1 -timeout 3h

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME=20s
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: regress
regress: deps-test ## the decoder against pg_waldump on what PostgreSQL's own regression tests write; PG=15|17|18
	@$(use_pg) PITR_REGRESS="$$(scripts/regress.sh $(or $(strip $(PG)),15))"; export PITR_REGRESS; \
	go test -tags regress -count=1 -v -timeout 1h -run '^TestEveryRecordOfTheRegression' ./internal/wal

.PHONY: stress
stress: deps-test ## whose row is it: 200 clients, killed at random, on servers terminated at random, for MINUTES=5; SEED=…
	@$(use_pg) export PITR_STRESS_SECONDS=$$(( $(or $(MINUTES),5) * 60 )) PITR_SEED=$(SEED); \
	CGO_ENABLED=1 go test -race -count=1 -v -timeout 3h -run '^TestWhoseRowIsIt' ./pooler

.PHONY: conformance
conformance: deps-test ## random scripts of raw messages, to Postgres and through the pooler in each mode, for MINUTES=5; SEED=…
	@$(use_pg) export PITR_RANDOM_SECONDS=$$(( $(or $(MINUTES),5) * 60 )) PITR_SEED=$(SEED); \
	go test -count=1 -v -timeout 3h -run '^Test(Random)?Scripts' ./pooler

.PHONY: soak
soak: deps-test build ## 500 clients do everything for MINUTES=20, and the pooler's memory must not grow; SEED=…
	@$(use_pg) export PITR_SOAK_MINUTES=$(or $(MINUTES),20) PITR_SEED=$(SEED) PITR_BINARY=$(CURDIR)/bin/pitr; \
	go test -tags soak -count=1 -v -timeout 24h -run '^TestSoak' ./pooler

.PHONY: bench
bench: deps-run build ## measure against PgBouncer and Odyssey: ARGS='pool --only simple,prepared --rounds 9'
	@CGO_ENABLED=0 go build -trimpath -o bin/bench ./bench
	@$(use_pg) bin/bench $(ARGS)

.PHONY: clients
clients: deps-run build ## smoke scripts of seven client libraries, and pgx's own tests, through the pooler; PG=17|18
	@$(use_pg) scripts/clients.sh
	@$(use_pg) scripts/pgx-suite.sh

.PHONY: lint
lint: ## gofmt, vet and the house rules; golangci-lint and shellcheck where they are installed
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not gofmt'd: $$unformatted" >&2; exit 1; }
	go vet ./...
	go test -count=1 ./internal/tidy
	@if command -v golangci-lint >/dev/null; then set -x; golangci-lint run; fi
	@if command -v shellcheck >/dev/null; then set -x; shellcheck .ci/run scripts/*.sh; fi

.PHONY: compose-test
compose-test: ## lose the postgres container and its volume, and get the rows back from the bucket
	scripts/compose-test.sh

.PHONY: pg
pg: ## unpack another Postgres major into .tools: make pg PG=18
	@[ -n "$(strip $(PG))" ] || { echo 'usage: make pg PG=17|18' >&2; exit 2; }
	@scripts/pg.sh $(strip $(PG))

.PHONY: versitygw
versitygw: ## install the S3 server of the tests into .tools
	@scripts/versitygw.sh

.PHONY: clean
clean: ## remove what was built; .tools stays
	rm -rf bin

.PHONY: deps-run deps-test
deps-run:
	@scripts/deps.sh postgresql

deps-test:
	@scripts/deps.sh gcc libc6-dev postgresql faketime

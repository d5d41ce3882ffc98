# Everything a fresh Debian 12 machine with Go, git and make lacks is installed by the targets that need it.
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILD   := -trimpath -buildvcs=false -ldflags "-X plenum/internal/program.version=$(VERSION)"
TOOL    := $(GO) tool -modfile=tools/go.mod
export GOFLAGS := -buildvcs=false

.PHONY: build run test test-matrix prove bench check format clean
build:
	$(GO) build $(BUILD) -o bin/ ./cmd/...

run:
	@sh tools/install.sh postgresql mosquitto
	@$(MAKE) --no-print-directory build
	@exec bin/plenumctl demo

test: bin/promtool
	@sh tools/install.sh postgresql mosquitto mosquitto-clients compiler libfaketime pg_partman pgbouncer
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -race -timeout 15m ./...

# The suites that depend on PostgreSQL's version, on 15 to 18; the table makes docs/matrix.md.
test-matrix:
	@sh tools/install.sh postgresql pg_partman pgbouncer npm
	@GO="$(GO)" sh tools/matrix.sh

# The proofs at the sizes that are claimed; the figures they print make docs/proof.md.
prove:
	@sh tools/install.sh postgresql mosquitto mosquitto-clients compiler libfaketime pg_partman pgbouncer
	@GO="$(GO)" sh tools/prove.sh

# BENCH=Partitions, for one, runs that alone; its part of the report is replaced. All of them but BlueGreen take about 40 minutes on two
# cores and up to 25 GB of disk under TMPDIR, hence the limit.
BENCH ?= .
bench:
	@sh tools/install.sh postgresql mosquitto pg_partman
	$(GO) test -count=1 -timeout 120m -run '^$$' -benchtime 1x -bench '$(BENCH)' ./bench -out $(CURDIR)/docs/benchmarks.md

check: bin/promtool
	@sh tools/install.sh postgresql mosquitto mosquitto-clients compiler
	@unformatted=$$($(TOOL) gofumpt -l .); [ -z "$$unformatted" ] || { echo "not formatted, run make format:"; echo "$$unformatted"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	bin/promtool check rules deploy/prometheus/rules/*.yml
	bin/promtool test rules deploy/prometheus/tests/*.yml
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 ./deploy

format:
	$(TOOL) gofumpt -w .

# Debian has promtool only inside the package of the server, which is unpacked here and not installed.
bin/promtool:
	@command -v promtool >/dev/null && mkdir -p bin && ln -sf "$$(command -v promtool)" $@ || sh tools/promtool.sh $@

clean:
	rm -rf bin .cache

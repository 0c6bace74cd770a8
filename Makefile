# Sauh. The two commands for everybody: sudo make demo, sudo make test.

# sudo drops /usr/local/go/bin from PATH, so look there too.
GO := $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)
export GO
export PATH := $(dir $(GO)):$(PATH)
export CGO_ENABLED ?= 0
CACHE := $(or $(SAUH_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sauh)
export SAUH_CACHE := $(CACHE)

COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
VERSION := $(shell cat VERSION)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

.PHONY: help build demo test check fmt lint unit race sim soak room ha-measure setup setup-lint clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## bin/sauh and bin/sauh-guest
	@command -v $(GO) >/dev/null || { echo "make: Go is not installed: https://go.dev/dl" >&2; exit 1; }
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/sauh ./cmd/sauh
	$(GO) build -trimpath -ldflags '-s -w' -o bin/sauh-guest ./cmd/sauh-guest

demo: setup build ## three nodes, six moves, two power cuts, a table (root)
	bin/sauh lab demo --guest-binary bin/sauh-guest --out out/demo $(DEMO_FLAGS)

test: setup check room ## everything: check, then the real thing in the machine room (root)
	@echo "make test: all passed"

check: lint unit sim ## format, vet, lint, unit tests with the race detector, 10,000 simulated lives

lint: setup-lint
	$(GO) vet ./...
	$(CACHE)/tools/golangci-lint fmt --diff
	$(CACHE)/tools/golangci-lint run

unit:
	CGO_ENABLED=1 $(GO) test -race -timeout 10m ./...
	$(GO) test -count=1 -run 'Quick|InTime' ./internal/core/ha ./internal/core/place # what the race detector makes slow

sim: build ## 10,000 ten-minute lives of simulated clusters, each checked for two writers of one disk
	bin/sauh sim --seeds 10000

soak: build ## the same with new seeds for SECONDS (an hour)
	bin/sauh sim --seconds $(or $(SECONDS),3600) --first $(or $(FIRST),$(shell date +%s))

room: build ## the tests that need a machine room (root)
	$(GO) test -tags room -timeout 30m -count=1 -p 1 -v ./internal/lab/roomtest/... ./internal/lab/vmtest/...

ha-measure: build ## recovery times in machine rooms, and a table (root); HA_FLAGS='--only suspicion,power-off --runs 3 --quick'
	$(GO) test -tags 'room measure' -timeout 4h -count=1 -v -run '^TestMeasureHighAvailability$$' ./internal/lab/roomtest -args $(HA_FLAGS)

fmt: setup-lint ## format the code
	$(CACHE)/tools/golangci-lint fmt

setup: ## install the programs that demo and test need (root)
	@scripts/setup.sh run

setup-lint:
	@scripts/setup.sh lint

clean: ## remove what was built
	rm -rf bin out

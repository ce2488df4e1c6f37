# Prerequisites: Go, git, make. `make deps` installs what the tests need besides.

# Where Debian keeps mosquitto and rabbitmq-server, which is not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

TEST_TIMEOUT ?= 10m
DRILL_TIMEOUT ?= 2h
FUZZTIME ?= 60s
PKG ?= ./...
BENCH ?= .
RUN ?=
ARGS ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build bin/limpet
	go build -o bin/limpet ./cmd/limpet

.PHONY: test
test: ## Run all tests with the race detector (CI=true: a missing program fails its tests instead of skipping them)
	go test -race -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: deps
deps: ## Install what the tests need (Debian): a C compiler, mosquitto, RabbitMQ, Node.js, MQTT.js, OpenSSL, GnuTLS
	@.ci/deps

.PHONY: lint
lint: ## Vet (Linux and macOS), build for arm64, and check format, style and go.mod
	go vet ./...
	GOOS=darwin go vet ./...
	GOARCH=arm64 go build ./...
	@unformatted=$$(go tool gofumpt -l .); if [ -n "$$unformatted" ]; then \
		echo "not formatted (go tool gofumpt -w FILE):"; echo "$$unformatted"; exit 1; fi
	go tool staticcheck ./...
	go mod tidy -diff

.PHONY: bench
bench: ## Run the Go benchmarks (PKG=./edge/... BENCH=Scanner)
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)

# Minimization is bounded: without that it can eat a target's whole time and end in "context deadline exceeded".
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME, one after another (PKG=./edge/mqtt FUZZTIME=10m)
	@set -e; \
	listed=$$(go test -list '^Fuzz' $(PKG)); \
	echo "$$listed" | awk '/^Fuzz/ {names[n++] = $$1} $$1 == "ok" {for (i = 0; i < n; i++) print $$2, names[i]; n = 0}' | \
	while read -r package target; do \
		echo "== $$target ($$package)"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x "$$package" </dev/null; \
	done

.PHONY: drills
drills: ## Run the tests at their full size (LIMPET_DRILLS=1): minutes to hours (RUN=TestConnack PKG=./cmd/...)
	LIMPET_DRILLS=1 go test -count 1 -timeout $(DRILL_TIMEOUT) -v -run '$(RUN)' $(PKG)

.PHONY: versus
versus: build ## Compare limpet with HAProxy and NGINX on this machine: an hour or two (ARGS='--quick', or --help)
	go run ./cmd/versus $(ARGS)

.PHONY: demo
demo: ## Run a mesh of three edges on this machine (ARGS=--once)
	go run ./cmd/limpet demo $(ARGS)

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf bin
	git ls-files '*package-lock.json' | while read -r lock; do rm -rf "$$(dirname "$$lock")/node_modules"; done

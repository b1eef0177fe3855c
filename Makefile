GO       ?= go
FUZZTIME ?= 10s
BENCH    ?= .
COUNT    ?= 1
DURATION ?= 10m
KILLS    ?= 100
RUNS     ?= 1000000
MESSAGES ?= 1000000
SEED     ?=
MATCH    ?=
SIZE     ?= 100 1024
SVG      ?=
VERSION  ?=
MODULE   := github.com/aminofox/robust-go-sdk

# Every module of the tree, the root first. tools/ holds no code of its own: its
# go.mod pins the versions of the linters.
MODULES := $(sort $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path './tools/*' -not -path '*/testdata/*' -not -path './.git/*')))

# The race detector needs cgo, which the go command turns off where it finds no C
# compiler.
RACE := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)

# The program itself: run by way of the go command, with the workspace off that would not
# let -modfile name the tools, it would not find what a nested module takes from its own.
GOLANGCI = $$(GOWORK=off $(GO) tool -modfile=$(CURDIR)/tools/go.mod -n golangci-lint)

# given has the value of a variable if somebody has set it, else what follows.
given = $(if $(filter file undefined,$(origin $(1))),$(2),$($(1)))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help check test fmt fmt-check vet lint tidy examples fuzz bench bench-log bench-peers torture-groups torture-kill torture-produce torture-history torture-files api release

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

check: fmt-check vet lint test examples fuzz ## everything a change must pass

test: ## vet and test every module, with the race detector where it can run
	@[ -n '$(RACE)' ] || echo 'cgo is off, mostly for want of a C compiler: the tests run without the race detector'
	@set -e; for dir in $(MODULES); do \
		echo "test $$dir"; \
		(cd $$dir && $(GO) vet ./... && $(GO) test $(RACE) -shuffle=on -timeout 20m ./...); \
	done

fmt: ## format every file
	@$(GOLANGCI) fmt

fmt-check:
	@$(GOLANGCI) fmt --diff

vet: ## vet every module, for this machine and for a 32-bit one
	@set -e; for dir in $(MODULES); do \
		echo "vet $$dir"; \
		(cd $$dir && $(GO) vet ./... && GOARCH=386 $(GO) vet ./...); \
	done

lint: ## run golangci-lint as .golangci.yml says, in every module
	@set -e; for dir in $(MODULES); do \
		echo "lint $$dir"; \
		(cd $$dir && $(GOLANGCI) run --config $(CURDIR)/.golangci.yml ./...); \
	done

# What modules of the tree need of others: the root, and those that another names in its go.work.
NEEDED := . robustprom
path_of = $(patsubst %/.,%,$(MODULE)/$(1))

# A nested module requires no version of the root, nor of another: its go.work has those beside
# it. The go command does not look there when it tidies.
tidy: ## tidy every go.mod
	@set -e; for dir in $(MODULES); do \
		cd $(CURDIR)/$$dir; \
		[ $$dir = . ] || $(GO) mod edit $(foreach m,$(NEEDED),-replace=$(call path_of,$m)=$(CURDIR)/$m); \
		GOWORK=off $(GO) mod tidy || failed=1; \
		[ $$dir = . ] || $(GO) mod edit $(foreach m,$(NEEDED),-dropreplace=$(call path_of,$m) -droprequire=$(call path_of,$m)); \
		[ -z "$$failed" ]; \
	done

examples: ## build the runnable programs into bin/
	@set -e; for main in $$(find examples -name main.go); do \
		dir=$$(dirname $$main); \
		$(GO) build -o bin/$$(echo $$dir | sed 's,^examples/,,; s,/,-,g') ./$$dir; \
	done

fuzz: ## run each fuzz target for FUZZTIME
	@set -e; targets=$$($(GO) test -list '^Fuzz' . | sed -n '/^Fuzz/p'); \
	[ -n "$$targets" ] || { echo 'the root package has no fuzz target, or does not build'; exit 1; }; \
	for target in $$targets; do \
		$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x .; \
	done

bench: ## run the benchmarks of BENCH, COUNT times
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) .

# Each benchmark makes its own comparison, round by round, so runs need not be compared
# with each other. They write some gigabytes below TMPDIR, which must be on the disk that
# is to be measured.
bench-log: ## measure the log on disk beside bare files, COUNT times
	$(GO) test -run '^$$' -bench '^BenchmarkLog' -benchtime 1s -count $(COUNT) -timeout 0 .

# DURATION is how long each run sends, 3 s if it is not set; COUNT is 3 then.
bench-peers: ## measure beside other systems the rows of MATCH, sizes SIZE, and draw SVG
	cd bench && $(GO) build -o ../bin/bench .
	bin/bench -match '$(MATCH)' -size '$(SIZE)' -duration $(call given,DURATION,3s) -count $(call given,COUNT,3) $(if $(SVG),-svg '$(SVG)')

# The test bounds itself: it panics with all stacks when it is stuck.
torture-groups: ## torture consumer groups for DURATION, planned by SEED
	ROBUST_TORTURE=$(DURATION) ROBUST_SEED=$(SEED) $(GO) test $(RACE) -count 1 -timeout 0 -v -run '^TestTortureGroups$$' .

torture-kill: ## kill a broker over a directory KILLS times, planned by SEED
	ROBUST_KILLS=$(KILLS) ROBUST_SEED=$(SEED) $(GO) test $(RACE) -count 1 -timeout 0 -v -run '^TestTortureKill$$' .

torture-produce: ## have producers send MESSAGES messages through faults, planned by SEED
	ROBUST_MESSAGES=$(MESSAGES) ROBUST_SEED=$(SEED) $(GO) test $(RACE) -count 1 -timeout 0 -v -run '^TestTortureProduce$$' .

torture-history: ## compare what brokers answer, killed and cut off, with a log, for DURATION
	ROBUST_HISTORY=$(DURATION) ROBUST_SEED=$(SEED) $(GO) test $(RACE) -count 1 -timeout 0 -v -run '^TestHistory$$' .

# Of power failures there are RUNS/20, of faults all there can be, and 50,000 lives with two. No
# race detector: the log's own goroutines are few, and each run is to be short.
torture-files: ## damage RUNS data directories, have power and disks fail, end repairs, and copy what is in use
	ROBUST_DAMAGES=$(RUNS) ROBUST_POWERLOSS=$$(($(RUNS) / 20)) ROBUST_FAULTS=all ROBUST_REPAIR_STEP=1 ROBUST_COPIES=20 \
		$(GO) test -count 1 -timeout 0 -v \
		-run '^(TestDamagedDirectories|TestPowerLoss|TestStorageFaults|TestRepairEndsInTheMiddle|TestCopyOfLiveDirectory)$$' .

release: ## have all modules require VERSION of one another, and say what tags to set
	cd release && $(GO) run . -version '$(VERSION)'

api: ## record the exported API in testdata/api.txt
	$(GO) test -run '^TestAPI$$' -update-api .

# What a person types. The work is done by infra/bootstrap.
PROJECT ?= kontena
CARGO_TARGET_DIR ?= $(HOME)/.cache/kontena/target
NAME ?= up
export PROJECT CARGO_TARGET_DIR

.DEFAULT_GOAL := help
.PHONY: help up down clean test soak outage kernel fuzz bench

help: ## shows this
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

up: ## brings up a grid with an example, installing and building what is missing
	@infra/bootstrap/up

down: ## removes all that `make up` made, except images, binaries and tools
	@infra/bootstrap/down

test: ## runs everything that must hold, on a stack of its own (KEEP=1 leaves that running)
	@infra/bootstrap/test

soak: ## proves by a million operations with all faults on that addresses are never wrong (an hour or more)
	@infra/bootstrap/soak

outage: ## proves that hosts go on without a Master for ten minutes (KONTENA_TEST_OUTAGE_S=600)
	@infra/bootstrap/test --ignore-default-filter -E 'test(/^outage::/)'

kernel: ## runs only the tests in the virtual machine, whose kernel has WireGuard
	@infra/bootstrap/test -E 'binary(kernel) & test(/^boot::/)'

fuzz: ## looks for bytes that a parser of the data plane cannot stand (KONTENA_FUZZ_S=60 for each, TARGET=..)
	@infra/bootstrap/fuzz $(TARGET)

bench: ## runs a benchmark: make bench NAME=up, ipam, overlay or mesh
	@infra/bootstrap/bench $(NAME)

clean: ## like down, for both stacks, and removes images and binaries too
	@PROJECT=kontena-test infra/bootstrap/down
	@infra/bootstrap/down --images

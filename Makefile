# Every target works on a fresh Debian 12 or 13, without another one before it, and can be run again.
.PHONY: setup dev demo test check openbao ceph bench soak fuzz zoo lane lock packages install help
.DEFAULT_GOAL := help

BIN := .venv/bin

help:  ## Show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup:  ## Install Debian packages and a venv, so that .venv/bin/vmkeep runs
	@scripts/setup

dev:
	@scripts/setup --dev

openbao: dev  ## Install an OpenBao server (75 MB) into .venv, for the tests of transit keys
	@$(BIN)/pip install -q --require-hashes -r requirements-openbao.lock

ceph: dev  ## Install Ceph's S3 gateway (67 MB of Debian packages), for VMKEEP_CEPH=1 make test
	@scripts/as-root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends radosgw ceph-mon ceph-osd

demo: dev  ## Back up, lose and bring back a UEFI VM with a vTPM, on a private libvirt
	@scripts/as-root $(BIN)/python -m demo

test: dev  ## Run all tests, on real VMs
	@scripts/as-root $(BIN)/python -m pytest $(or $(ARGS),-n auto --dist loadfile --no-loadscope-reorder)

check: dev  ## Run the static checks
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: dev  ## Measure against peers on this machine (docs/performance.md)
	@scripts/bench-peers
	@scripts/as-root $(BIN)/python -m bench $(ARGS)

zoo: dev  ## Play every configuration of docs/guide/configurations.md whole: ROWS=name,... JOBS=2
	@scripts/as-root $(BIN)/python -m tests.zoo $(if $(ROWS),--rows $(ROWS)) $(if $(JOBS),--jobs $(JOBS))

lane:  ## Run demo and test on a bare Debian: SUITE=trixie|bookworm RUN='make demo' FRESH=1 NAME=...
	@scripts/as-root python3 -m lane $(if $(SUITE),--suite $(SUITE)) $(if $(NAME),--name $(NAME)) $(if $(FRESH),--fresh) "$${RUN:-make demo && make test}"

soak: dev  ## Live random lives of VMs (SEED, STEPS or MINUTES, JOBS; CONTRIBUTING.md)
	@scripts/as-root $(BIN)/python -m tests.soak --seed $(or $(SEED),1) $(if $(STEPS),--steps $(STEPS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

fuzz: dev  ## Give the readers of foreign bytes what others may write, for MINUTES (CONTRIBUTING.md)
	@$(BIN)/python -m tests.property.fuzzing $(or $(MINUTES),20)

packages:  ## Build a Debian package for this release, and a wheel, into dist/ (PROVE=yes: install and try it, then remove it)
	@scripts/packages
	@[ "$(PROVE)" != yes ] || scripts/as-root packaging/prove-package

install:  ## Install vmkeep for all users of this machine, outside of the checkout (PREFIX, default /opt/vmkeep)
	@scripts/install

lock:  ## Renew the lock files (needs uv)
	uv pip compile pyproject.toml --group dev --universal --generate-hashes -q -o requirements-dev.lock --custom-compile-command "make lock"
	uv pip compile pyproject.toml -c requirements-dev.lock --universal --generate-hashes -q -o requirements.lock --custom-compile-command "make lock"
	uv pip compile pyproject.toml --all-extras -c requirements-dev.lock --universal --generate-hashes -q -o requirements-providers.lock --custom-compile-command "make lock"
	uv pip compile --group openbao --universal --generate-hashes -q -o requirements-openbao.lock --custom-compile-command "make lock"

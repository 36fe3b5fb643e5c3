# Two commands do everything on a fresh machine, as root or as a user in the docker group:
#   make demo    brings the lab up, deploys on it, shows the status
#   make test    every gate; what CI runs
# They need Python 3.11 or later and make; Docker is installed from the distribution where root may do so.

# The first of these that runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$$p" && exit; done; echo python3)
VENV := .venv
READY := $(VENV)/.ready
BIN := $(abspath $(VENV)/bin)
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env demo lab lab-down site status test lint unit sanity package docs docs-check molecule e2e bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## the virtual environment with everything that is pinned in requirements.txt

$(READY): requirements.txt tools/make_env.sh
	@PYTHON="$(PYTHON)" tools/make_env.sh $(VENV)

demo: env lab ## bring the lab up, run site.yml on it, show the status
	ansible-playbook playbooks/site.yml
	ansible-playbook playbooks/status.yml

lab: env ## bring the lab's hosts up
	python3 lab/lab.py up

lab-down: ## remove the lab, and nothing else
	$(PYTHON) lab/lab.py down

site: env ## deploy on the lab, or bring it to what the inventory says
	ansible-playbook playbooks/site.yml

status: env ## who is what, and how far behind
	ansible-playbook playbooks/status.yml

test: env ## every gate
	python3 tools/gates.py

lint unit sanity package docs-check molecule e2e: env ## one gate of `make test`
	python3 tools/gates.py $@

docs: env ## write docs/roles anew from the roles' argument specs
	python3 tools/role_docs.py

bench: env ## print how long things take on the lab, beside the targets
	python3 tests/bench/bench_deploy.py

clean: ## remove what building and testing left behind (the lab: make lab-down)
	rm -rf $(VENV) .ansible .pytest_cache .ruff_cache shannon-resilience-*.tar.gz

# Two commands do everything on a fresh machine, as root or as a user in the docker group:
#   make demo    brings the lab up, deploys on it, shows the status, runs a task through it
#   make test    every gate; what CI runs
# They need Python 3.11 or later and make; Docker is installed from the distribution where root may do so.
# PYTHON=... names another interpreter for the virtual environment.

VENV := .venv
READY := $(VENV)/.ready
export PATH := $(abspath $(VENV)/bin):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env demo lab lab-down site status test lint unit sanity package docs docs-check molecule e2e soak proto bench build clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9][a-z0-9 -]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(READY) ## the virtual environment with everything that is pinned in requirements.txt

$(READY): requirements.txt tools/make_env.sh
	@PYTHON="$(PYTHON)" tools/make_env.sh $(VENV)

demo: env lab ## bring the lab up, deploy on it, show who is what, run a task through it
	ansible-playbook playbooks/site.yml
	ansible-playbook playbooks/status.yml
	ansible-playbook playbooks/smoke.yml

lab: env ## bring the lab's hosts up
	python3 lab/lab.py up

site: env ## deploy on the lab, or bring it to what the inventory says
	ansible-playbook playbooks/site.yml

status: env ## who is what, and how far behind
	ansible-playbook playbooks/status.yml

lab-down: ## remove the lab, and nothing else
	python3 lab/lab.py down

test: env ## every gate, the quick ones first; stops at the first that fails (GATES=--keep-going: does not)
	python3 tools/gates.py $(GATES)

lint: env ## gate: style and correctness of Python and Ansible content
unit: env ## gate: unit tests
docs-check: env ## gate: docs/roles says what the argument specs say
package: env ## gate: the collection builds, installs and works elsewhere
sanity: env ## gate: ansible-test sanity
molecule: env ## gate: every role on plain images (SCENARIOS="etcd redis": these only)
e2e: env ## gate: the whole thing on the lab
soak: env ## outside of make test, hours: second and dry runs, rarer faults, a lost registry, restores after disasters
lint unit docs-check package sanity molecule e2e soak:
	python3 tools/gates.py $@

docs: env ## write docs/roles anew from the roles' argument specs
	python3 tools/role_docs.py

proto: env ## make the services' gRPC code anew from shannon.proto
	cd services/src/shannon/services/proto && python3 -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. shannon.proto
	sed -i 's/^import shannon_pb2 as/from . import shannon_pb2 as/' services/src/shannon/services/proto/shannon_pb2_grpc.py

bench: env ## print figures beside their targets: breakers, the verbs, backups and moves on the lab, the services, the indexer
	python3 tests/bench/bench_breaker.py
	python3 tests/bench/bench_deploy.py --leave-up
	python3 tests/bench/bench_dead_hosts.py
	python3 tests/bench/bench_backup.py
	python3 tests/bench/bench_moves.py
	python3 tests/bench/bench_services.py
	python3 tests/bench/bench_indexer.py --host a1
	python3 lab/lab.py down

build: env ## make the archive that ansible-galaxy collection install takes
	ansible-galaxy collection build --force

clean: ## remove what building and testing left behind (the lab: make lab-down)
	rm -rf $(VENV) .ansible .benchmarks .cache/pytest .cache/ruff .pytest_cache .ruff_cache shannon-resilience-*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every command of the project; `make help` lists them. Needs a Debian 12 machine with Rust and Go; the rest is installed.
LOCAL := infrastructure/local-kubernetes
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test bench model golden guards chaos partitions check fmt up down install crds deny

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## on a real Kubernetes: one worker and a million messages, then two workers, then three, with a writer running
	infrastructure/demo/up.sh

demo-down: ## remove everything that the demo created, including the Kubernetes
	infrastructure/demo/down.sh

test: ## everything: unit, property, CRD, chart and contract tests, stories on a real Kubernetes
	infrastructure/test.sh

partitions: ## scale 2 -> 3 -> 2 with some 23,000 placements; half an hour or more
	infrastructure/prerequisites.sh
	$(CARGO) test --locked --test stories -- \
		--ignored --exact --nocapture partitions::two_years_of_daily_partitions_move_out_and_in

bench: ## how much faster moves are with the operator's settings; four minutes on an idle machine with Citus
	infrastructure/prerequisites.sh
	$(CARGO) run --locked --release --package testkit --bin bench

model: ## many random histories of the planner against its model: PROPTEST_CASES=50000 (per test, of two) for a night
	PROPTEST_CASES=$${PROPTEST_CASES:-5000} $(CARGO) test --locked --release --test plan_converges

golden: ## write the golden plans again (tests/plan_converges/golden, docs/plans, README.md), to read what changed
	UPDATE_GOLDEN=1 $(CARGO) test --locked --test plan_converges golden

guards: ## remove each guard of the planner in turn and expect a test to fail (about half a minute each)
	$(CARGO) test --locked --test guards -- --ignored --nocapture

chaos: ## scale up and down under random faults from SEED=n for SECONDS=600; disturbs the whole machine
	infrastructure/prerequisites.sh
	CHAOS_SECONDS=$(or $(SECONDS),600) $(if $(SEED),CHAOS_SEED=$(SEED)) $(CARGO) test --locked --test stories -- \
		--ignored --exact --nocapture chaos::workers_come_and_go_whatever_strikes

check: ## format and lint, of Rust and of shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	infrastructure/lint-scripts.sh

fmt: ## format
	$(CARGO) fmt --all

up: ## start the local Kubernetes, if it is not running; prints what a shell needs to use it
	@$(LOCAL)/up.sh

down: ## stop the local Kubernetes and delete its state
	$(LOCAL)/down.sh

install: ## install this checkout's operator on the local Kubernetes, from its chart
	infrastructure/prerequisites.sh
	$(CARGO) build --locked --release --bin dialog-operator
	infrastructure/install.sh target/release/dialog-operator

crds: ## regenerate the CustomResourceDefinition after a change of src/api
	$(CARGO) run --quiet --locked --bin dialog-operator -- crd >target/dialogclusters.yaml
	cp target/dialogclusters.yaml crds/dialogclusters.yaml
	cp target/dialogclusters.yaml charts/dialog-operator/files/dialogclusters.yaml

deny: ## check licences, bans and sources of all dependencies (installs cargo-deny, once)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

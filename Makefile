# Every command of the project; `make help` lists them. A machine needs Rust, Go and Debian; the rest is installed.
LOCAL := infrastructure/local-kubernetes
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test bench model guards chaos partitions check fmt up down install crds deny

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a real Kubernetes, one worker, a million messages; then two, then three, with a writer running
	infrastructure/demo/up.sh

demo-down: ## remove all that the demo made, the Kubernetes with it
	infrastructure/demo/down.sh

test: ## everything: unit, property, CRD, chart and contract tests, stories on a real Kubernetes
	infrastructure/test.sh

partitions: ## two workers become three and two again with some 23,000 placements; half an hour or more
	infrastructure/prerequisites.sh
	$(CARGO) test --locked --test stories -- \
		--ignored --exact --nocapture partitions::two_years_of_daily_partitions_move_out_and_in

bench: ## how much sooner a cluster is even with the operator's settings; four minutes on an idle machine with Citus
	infrastructure/prerequisites.sh
	$(CARGO) run --locked --release --example bench

model: ## many random histories of the planner against its model: PROPTEST_CASES=50000 for a night, in each of its two halves
	PROPTEST_CASES=$${PROPTEST_CASES:-5000} $(CARGO) test --locked --release --test plan_converges

guards: ## take each guard of the planner away, one after another: a test must fail (about a minute each)
	$(CARGO) test --locked --test guards -- --ignored --nocapture

chaos: ## workers come and go while faults drawn from SEED=n strike for SECONDS=600; disturbs the whole machine
	infrastructure/prerequisites.sh
	CHAOS_SECONDS=$(or $(SECONDS),600) $(if $(SEED),CHAOS_SEED=$(SEED)) $(CARGO) test --locked --test stories -- \
		--ignored --exact --nocapture chaos::workers_come_and_go_whatever_strikes

check: ## format and lint, of Rust and of shell scripts
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	infrastructure/lint-scripts.sh

fmt: ## format
	$(CARGO) fmt

up: ## the local Kubernetes, or nothing to do when it is there; prints what a shell needs to use it
	@$(LOCAL)/up.sh

down: ## stop the local Kubernetes and delete its state
	$(LOCAL)/down.sh

install: ## this checkout's operator on the local Kubernetes, from its chart
	infrastructure/prerequisites.sh
	$(CARGO) build --locked --release --bin dialog-operator
	infrastructure/install.sh target/release/dialog-operator

crds: ## write the CustomResourceDefinition again, after a change of src/api
	$(CARGO) run --quiet --locked --bin dialog-operator -- crd >target/dialogclusters.yaml
	cp target/dialogclusters.yaml crds/dialogclusters.yaml
	cp target/dialogclusters.yaml charts/dialog-operator/files/dialogclusters.yaml

deny: ## licences, bans and sources of all dependencies (installs cargo-deny, once)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

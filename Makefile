# Foldlog's commands. `make` lists them. Each one sets up what it needs, from a bare clone.

PYTHON ?= python3
N ?= 20

bin := .venv/bin
install := @PYTHON='$(PYTHON)' tools/house/venv.sh
broker := $(bin)/python tools/broker/broker.py

.DEFAULT_GOAL := help
.PHONY: help demo test check kafka bench soak venv clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

demo: ## 27,004 real flights, kept up to date by a daemon that is killed half-way, and checked
	$(install) runtime
	@$(bin)/python -m examples.flights.demo $(ARGS)

test: ## every test but the soak, on the embedded log and on a Kafka broker of its own
	$(install) dev
	@$(broker) exec -- $(bin)/python -m pytest -q -n auto --dist worksteal -m 'not soak' $(ARGS)

check: ## ruff (format and lint) and mypy --strict, on code and tests
	$(install) dev
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/python -m mypy

kafka: ## a Kafka broker in the foreground; prints its address; Ctrl-C stops it
	$(install) runtime
	@$(broker) run $(ARGS)

bench: ## measure, and compare with the raw libraries (benchmarks/README.md)
	$(install) dev
	@$(broker) exec -- $(bin)/python -m benchmarks.run $(ARGS)

soak: ## the long tests, N times over: make soak N=20
	$(install) dev
	@EVENTSTORE_TEST_SOAK_ROUNDS=$(N) $(broker) exec -- $(bin)/python -m pytest -q -m soak --timeout=0 -s $(ARGS)

venv: ## create or update .venv with everything for tests and checks
	$(install) dev

clean: ## delete what was built, installed or cached here (not ./.eventstore, which is data)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

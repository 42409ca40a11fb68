# make demo: set up, then train, validate, fuse, export and verify on the embedded data set
# make test: set up, then run the tests; make lint: the linter and the formatter check

PYTHON ?= python3
VENV := .venv
RUNS := runs/demo
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Open MPI refuses to run as root unless told twice; containers often have no other user.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

.PHONY: demo test lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt
	touch $@

demo: setup
	rm -rf $(RUNS)
	mpirun -n 2 python train.py --config configs/visformer/visformer_tiny_digits_cpu.yaml --ckpt_save_dir $(RUNS)
	mpirun -n 2 python validate.py -c $(RUNS)/visformer_tiny.yaml --ckpt_path $(RUNS)/visformer_tiny_best.ckpt --output $(RUNS)/accuracy.json
	python export.py -c $(RUNS)/visformer_tiny.yaml --ckpt_path $(RUNS)/visformer_tiny_best.ckpt --batch_size dynamic --output $(RUNS)/deploy

test: setup
	python -m pytest

lint: setup
	ruff check .
	ruff format --check .

clean:
	rm -rf runs .pytest_cache .ruff_cache

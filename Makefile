# make demo: set up, then train, validate, fuse, export, verify and draw predictions, on an embedded data set;
#            MODEL=fastvit_t8 or MODEL=riformer_s12 does it with another family, MODEL=rtdetr_riformer_xs with objects
# make test: set up, then run the tests; make test-all: with the larger sizes of a family, the longest of a kind and
#            the families that teach others
# make lint: the linter, the formatter, the type check and the documentation's references; make docs: the documentation
#            with the pages of the API, into site/
# make compat: the other versions of MindSpore, each in an environment of 2.5 GB under .compat/, beside this one: an hour
#            and more; make compat-quick: the oldest, minutes
# make test PYTHON=python3.12 VENV=.compat/python3.12: the same with another Python

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
OLDEST := 2.7.0
MODEL ?= visformer_tiny
CONFIG = $(firstword $(wildcard $(DATASETS:%=configs/*/$(MODEL)_%_cpu.yaml)))
DEMO = runs/demo/$(MODEL)

# The embedded data sets: what a validation measures, what the demo's network must reach, how predictions are drawn.
DATASETS := digits scenes
DATASET = $(firstword $(foreach each,$(DATASETS),$(if $(findstring _$(each)_,$(CONFIG)),$(each))))
METRIC_digits := top1
LEAST_digits := 97
DRAW_digits = --contact_sheet $(DEMO)/predictions.png
METRIC_scenes := AP
LEAST_scenes := 0.55
DRAW_scenes = --draw $(DEMO)/drawn
METRIC = $(METRIC_$(DATASET))
LEAST = $(LEAST_$(DATASET))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Open MPI refuses to run as root unless told twice; containers often have no other user.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

# Three workers on two cores: one of them often waits, for a server, a signal or a rank.
TESTS = python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs compat compat-quick setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

demo: setup
	rm -rf $(DEMO)
	mpirun -n 2 python train.py --config $(CONFIG) --ckpt_save_dir $(DEMO)
	mpirun -n 2 python validate.py -c $(CONFIG) --ckpt_path $(DEMO)/$(MODEL)_best.ckpt
	python -m mindcv_reparam reparameterize -c $(CONFIG) --ckpt_path $(DEMO)/$(MODEL)_best.ckpt --output $(DEMO)/fused.ckpt
	python validate.py -c $(CONFIG) --ckpt_path $(DEMO)/fused.ckpt --output $(DEMO)/accuracy.json
	python -c "import json; found = json.load(open('$(DEMO)/accuracy.json'))['$(METRIC)']; assert found >= $(LEAST), found"
	python export.py -c $(CONFIG) --ckpt_path $(DEMO)/fused.ckpt --file_format MINDIR ONNX --export_batch_size dynamic \
		--verify_data $(DATASET) --output $(DEMO)/bundle
	python -m mindcv_reparam verify $(DEMO)/bundle
	python -c "from mindcv_reparam.data.datasets import write_images; write_images('$(DATASET)', '$(DEMO)/images', 12)"
	python -m mindcv_reparam infer $(DEMO)/bundle $(DEMO)/images $(DRAW_$(DATASET))

test: setup
	$(TESTS) -m "not exhaustive"

test-all: setup
	$(TESTS)

lint: setup
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy
	$(MAKE) docs

# The theme's makers announce another program in every build.
docs: setup
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet

compat: setup
	python tests/compat.py

compat-quick: setup
	python tests/compat.py --quick $(OLDEST)

clean:
	rm -rf runs site .pytest_cache .ruff_cache .mypy_cache

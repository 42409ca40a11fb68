# make demo: set up, then train, validate, fuse, export and verify on the embedded data set;
#            make demo MODEL=fastvit_t8 or MODEL=riformer_s12 does it with another family
# make test: set up, then run the tests; make lint: the linter and the formatter check

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
MODEL ?= visformer_tiny
CONFIG = $(wildcard configs/*/$(MODEL)_digits_cpu.yaml)
DEMO = runs/demo/$(MODEL)
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
	rm -rf $(DEMO)
	mpirun -n 2 python train.py --config $(CONFIG) --ckpt_save_dir $(DEMO)
	mpirun -n 2 python validate.py -c $(CONFIG) --ckpt_path $(DEMO)/$(MODEL)_best.ckpt
	python -m mindcv_reparam reparameterize -c $(CONFIG) --ckpt_path $(DEMO)/$(MODEL)_best.ckpt --output $(DEMO)/fused.ckpt
	python validate.py -c $(CONFIG) --ckpt_path $(DEMO)/fused.ckpt --output $(DEMO)/accuracy.json
	python -c "import json; top1 = json.load(open('$(DEMO)/accuracy.json'))['top1']; assert top1 >= 97, top1"
	python export.py -c $(CONFIG) --ckpt_path $(DEMO)/fused.ckpt --file_format MINDIR ONNX --batch_size dynamic \
		--verify_data digits --output $(DEMO)/bundle
	python -m mindcv_reparam verify $(DEMO)/bundle

test: setup
	python -m pytest -n 2 --dist loadfile

lint: setup
	ruff check .
	ruff format --check .

clean:
	rm -rf runs .pytest_cache .ruff_cache

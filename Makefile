# Every target does its own set-up: a virtual environment in the checkout, on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python
OPENVINO := .venv-openvino
STARTER := build/starter
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-arm64 lint starter bench genai openvino fuzz clean

demo: $(READY)
	$(RUN) -m edgeft demo

test: $(READY)  # one process a core, one thread each: more threads than cores would wait for each other
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile --durations=10

test-arm64: $(READY)  # takes root and a network; the root stays in build/arm64
	$(RUN) benchmarks/arm64.py

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Train the embedded default from nothing: about half an hour on one core
starter: $(READY)
	rm -rf $(STARTER)
	$(RUN) -m edgeft.starter.recipe --out $(STARTER) --megabytes 36
	$(RUN) -m edgeft train full --config edgeft/starter/train.toml --base $(STARTER)/base --data $(STARTER)/train.jsonl \
		--eval-data $(STARTER)/valid.jsonl --out $(STARTER)/run
	$(RUN) -m edgeft.starter.recipe --ship $(STARTER)/run

bench: $(READY)
	$(RUN) benchmarks/train_cpu.py
	$(RUN) benchmarks/export_size.py
	$(RUN) benchmarks/export_parity.py

# Each reader of strangers' files, coverage-guided, for so many seconds; needs atheris, which `make fuzz` installs
SECONDS ?= 60
fuzz: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(RUN) fuzz/run.py --seconds $(SECONDS)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("edgeft needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

# OpenVINO's own environment: its onnxruntime takes the other's place
openvino: $(OPENVINO)/.ready

$(OPENVINO)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime-openvino numpy tokenizers jinja2 click pluggy
	$(OPENVINO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(OPENVINO)/.ready

# An environment with ONNX Runtime GenAI for benchmarks/place_genai.py, tests and foreign_graphs.py; takes a network
genai: build/genai/.ready

build/genai/.ready:
	$(PYTHON) -m venv build/genai
	build/genai/bin/python -m pip install --quiet "torch>=2.11,<2.14" "onnxruntime-genai>=0.18" transformers onnx onnx_ir
	touch $@

clean:
	rm -rf $(VENV) $(OPENVINO) build demo dist *.egg-info

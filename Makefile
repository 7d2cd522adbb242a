# make demo: press a real model from checkpoint to an answered request.
# make test: lint, types and tests.  Both make .venv first; the second run skips that.
# make test-kernels: every Triton kernel compiled for four generations of GPUs, without one.
# make test-sanitized: the tests of native code once more, under AddressSanitizer and UBSan.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One pinned torch. Where the package index offers a build for CPUs alone, pip prefers it.
TORCH  := torch==2.13.0

NATIVE := CMakeLists.txt $(shell find runtime/kernels/cpu quant/kernels quant/format/native -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)

# Native modules built with sanitizers, whose runtime must be loaded before everything else; Python
# itself leaks by design.
SANITIZED := build/sanitized
SANITIZER := $(foreach name,libasan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))
KERNEL_TESTS := $(wildcard tests/runtime/kernels/test_native_*.py) tests/quant/format/test_ggml_native.py \
  tests/quant/test_rounding_kernels.py tests/quant/test_products.py
# Long contexts take most of the time, and visit no line of code that short ones do not.
LONG := test_one_token_behind_many_has_the_bits_it_has_among_them and 300-14

.PHONY: demo test test-clients test-gpu test-kernels test-sanitized test-peers lint clean

demo: $(VENV)/installed
	$(BIN)/coldpress demo

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

test-clients: $(VENV)-clients/installed
	COLDPRESS_ALL_CLIENTS=1 $(VENV)-clients/bin/python -m pytest -p no:unraisableexception -m clients tests/clients

# In an environment whose torch has CUDA; without a GPU the same tests run interpreted, in `test`.
test-gpu:
	$(PYTHON) -m pytest tests/runtime/kernels/triton tests/runtime/executors/test_cuda_executor.py \
		tests/runtime/executors/test_cuda_served.py tests/benchmarks/test_gpu_models.py

# Every Triton kernel down to machine code for four generations of GPUs, none of which need be there.
test-kernels: $(VENV)/installed
	$(BIN)/python -m benchmarks.on_gpu.compiling --arch 80,86,89,90

test-sanitized: $(SANITIZED)/installed
	LD_PRELOAD="$(SANITIZER)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  COLDPRESS_NATIVE=$(SANITIZED) $(BIN)/python -m pytest -p tests.other_natives --capture=sys \
	  -k 'not ($(LONG))' $(KERNEL_TESTS)

test-peers: $(VENV)/peers-installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/torch-installed:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off '$(TORCH)'
	@touch $@

$(VENV)/installed: $(VENV)/torch-installed pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --progress-bar off '$(TORCH)' --editable '.[dev,quantize]'
	@touch $@

$(VENV)/peers-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --progress-bar off --editable '.[dev,quantize,peers]'
	@touch $@

# Clients that want older versions of a few packages: over the environment of the other tests.
CLIENTS := $(VENV)-clients
SITE    := import sysconfig; print(sysconfig.get_path("purelib"))
$(CLIENTS)/installed: $(VENV)/installed tests/clients/requirements.txt
	$(BIN)/python -m venv --clear --without-pip $(CLIENTS)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	  > $$($(CLIENTS)/bin/python -c '$(SITE)')/tests.pth
	$(BIN)/python -m pip --python $(CLIENTS)/bin/python install --quiet --progress-bar off \
	  --no-deps --no-compile --requirement tests/clients/requirements.txt
	@touch $@

$(SANITIZED)/installed: $(VENV)/installed $(NATIVE)
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps --upgrade --target $(SANITIZED) . \
	  --config-settings=build-dir=build/sanitized-objects --config-settings=install.strip=false \
	  --config-settings=cmake.build-type=Debug --config-settings=cmake.define.CMAKE_CXX_FLAGS_DEBUG=-O1 \
	  --config-settings=cmake.define.COLDPRESS_SANITIZE=ON
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-clients build .mypy_cache .ruff_cache .pytest_cache .hypothesis

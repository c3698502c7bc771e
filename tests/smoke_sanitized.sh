#!/usr/bin/env bash
# Runs tests/python/smoke.py against an extension built with a sanitizer: asan (with ubsan) or tsan.
#
# The interpreter is not instrumented, so the sanitizer's library is preloaded. The build goes to an
# environment of its own: the development one must keep its fast module, and there an import hook
# would find that one first. Packages come from the development environment through a .pth file,
# which adds its folder but does not run its hooks. Leaks are looked for in the C tests alone, since
# an interpreter leaves some by design.
#
# usage: tests/smoke_sanitized.sh asan|tsan [arguments of the smoke test]
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
smoke=tests/python/smoke.py
if [[ ! -f $smoke ]]; then
    echo "$name: skipped, there is no $smoke"
    exit 0
fi

case $name in
asan)
    sanitize=address,undefined
    library=libasan.so
    ;;
tsan)
    sanitize=thread
    library=libtsan.so
    ;;
*)
    echo "usage: $0 asan|tsan" >&2
    exit 2
    ;;
esac

development=$PWD/.venv
environment=$PWD/build/$name-python/venv
site_packages='import sysconfig; print(sysconfig.get_path("purelib"))'
if [[ ! -x $environment/bin/python ]]; then
    "$development/bin/python" -m venv --without-pip "$environment"
fi
"$development/bin/python" -c "$site_packages" \
    > "$("$environment/bin/python" -c "$site_packages")/development.pth"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-build-isolation --no-deps --ignore-installed --force-reinstall \
    --config-settings=build-dir="build/$name-python/build" \
    --config-settings=cmake.define.COLLECTIVES_SANITIZE="$sanitize" .

run=()
# Address-space randomisation beyond 28 bits is more than gcc 12's tsan can map.
if [[ $name == tsan && $(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28) -gt 28 ]]; then
    run+=(setarch "$(uname -m)" --addr-no-randomize)
fi
# libstdc++ goes along: the sanitizers look up its hooks at start, libzmq brings it in later.
preload="$(gcc -print-file-name="$library") $(gcc -print-file-name=libstdc++.so.6)"
run+=(env
    LD_PRELOAD="$preload"
    ASAN_OPTIONS="detect_leaks=0 halt_on_error=1"
    UBSAN_OPTIONS="print_stacktrace=1 halt_on_error=1"
    TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1 suppressions=$PWD/tests/tsan.supp"
    "$environment/bin/python")

# The check must be able to fail: is it the instrumented module that is imported? Run from elsewhere,
# because the current folder, where the sources are, would come first.
(cd / && "${run[@]}" - "$library" "$environment") <<'PYTHON'
import sys
from collectives import _native

library, environment = sys.argv[1:]
assert _native.__file__.startswith(environment), f"another module was imported: {_native.__file__}"
assert library in open("/proc/self/maps").read(), f"{library} is not loaded"
PYTHON

echo "$name: $smoke"
"${run[@]}" "$smoke" "$@"
echo "$name: $smoke passed"

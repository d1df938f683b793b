#!/usr/bin/env bash
# venv.sh DIR EXTRAS: makes a virtual environment with this project (editable) and the extras, at the pinned versions.
# Does nothing, and needs no network, if DIR already matches pyproject.toml and constraints.txt.
. "$(dirname "$0")/lib.sh"

dir=$1
extras=$2
stamp=$dir/.anyclass-stamp

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    # The user's choice, python3, comes first. A name may exist and still not run (pyenv's shims).
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            # The real interpreter: a virtual environment of a shim breaks when the shim selects another.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON is not a working Python 3.11 or newer"
    fi
    die "no Python 3.11 or newer found (tried python3, python3.13, python3.12, python3.11);" \
        "install one, or set its path: make PYTHON=/path/to/python3 …"
}

# Prints a digest of everything that the environment depends on.
wanted() {
    "$1" - "$extras" pyproject.toml constraints.txt scripts/venv.sh <<'PY'
import hashlib, os, pathlib, sys
digest = hashlib.sha256(f"{sys.argv[1]} {os.path.realpath(sys.executable)} {sys.version} {os.getcwd()}".encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

make_venv() {
    "$1" -m venv --clear "$dir" >/dev/null 2>&1
}

python=$(find_python)
want=$(wanted "$python")
if [ -x "$dir/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    exit 0
fi

started=$SECONDS
rm -f "$stamp"
say "making $dir with $("$python" --version) (the first time, or because the dependencies changed)"
# An environment of the same interpreter is updated in place; any other is replaced.
if [ "$("$dir/bin/python" -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null)" != "$python" ]; then
    if ! make_venv "$python"; then
        # On Debian, the part of venv that installs pip is in a package named after the interpreter.
        case $python in
            /usr/bin/python3*) package=$(basename "$python")-venv ;;
            *) die "'$python -m venv' does not work; repair that Python, or set another: make PYTHON=…" ;;
        esac
        system_package "$package" "'$python -m venv' does not work yet"
        make_venv "$python" || die "'$python -m venv' does not work, even with $package installed"
    fi
fi

log=$dir/install.log
# Shows one line on a terminal, nothing elsewhere; the log has everything.
progress() {
    tee "$log" | if [ -t 2 ]; then
        awk '/^Collecting|^Downloading|^Installing/ { printf "\r\033[K  %.70s", $0 > "/dev/stderr" } END { printf "\r\033[K" > "/dev/stderr" }'
    else
        cat >/dev/null
    fi
}
say "installing the packages of [$extras]"
if ! "$dir/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-warn-script-location \
    -c constraints.txt -e ".[$extras]" 2>&1 </dev/null | progress; then
    grep -vi '^WARNING' "$log" | tail -n 15 >&2
    die "pip could not install the packages (above; all of it in $log)"
fi
printf '%s\n' "$want" >"$stamp"
say "$dir is ready after $((SECONDS - started)) s"

#!/bin/sh
# Bring .venv up to date: venv.sh runtime|dev. Quick and silent when there is nothing to do.
#
# A stamp holds the checksum of what was installed (requirement files, pyproject.toml, the Python),
# so that a changed pin installs again and an unchanged one does not. It is written last: an
# install that was cut off is repeated.
set -eu

set_name=$1
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."

fail() {
    echo "venv: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is not on the PATH (Python 3.11 or newer is needed)"
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "$python does not run"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $found, and 3.11 or newer is needed: make PYTHON=python3.12 ..."

# `ensurepip` is the half of `venv` that Debian and Ubuntu leave out.
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module (Debian, Ubuntu: apt install python3-venv)"

# What a set was installed from, in one line.
state_of() {
    files="pyproject.toml requirements/runtime.txt requirements/build.txt"
    [ "$1" = runtime ] || files="$files requirements/$1.txt"
    # shellcheck disable=SC2086  # the names are ours and have no spaces
    echo "$found $(pwd) $(cat $files | cksum)"
}

is_installed() {
    [ "$(cat ".venv/installed-$1" 2>/dev/null)" = "$(state_of "$1")" ]
}

# The development set has the runtime set in it.
if { is_installed "$set_name" || { [ "$set_name" = runtime ] && is_installed dev; }; } &&
    .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

echo "venv: installing the $set_name packages into .venv (once) ..." >&2
if ! .venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$found')" 2>/dev/null
then
    rm -rf .venv # another Python's, or one that does not run
    "$python" -m venv .venv
fi
pip=".venv/bin/python -m pip --quiet --disable-pip-version-check --no-input"
$pip install -r "requirements/$set_name.txt" -r requirements/build.txt
# The package itself, as an editable install: with the pinned hatchling, and with nothing that
# the requirement files do not name.
$pip install --no-deps --no-build-isolation -e .
state_of "$set_name" >".venv/installed-$set_name"

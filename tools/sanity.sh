#!/usr/bin/env bash
# ansible-test sanity on a staged copy of the checkout: ansible-test wants to stand in a folder
# ansible_collections/shannon/resilience, and resolves links. The copy holds what git has or would take.
#   sanity.sh [OPTION OF ansible-test sanity ...]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
target=$stage/ansible_collections/shannon/resilience
mkdir -p "$target"
cd "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' path; do
    if [ -e "$path" ]; then printf '%s\0' "$path"; fi
done | tar --null -T - -cf - | tar -C "$target" -xf -
git -C "$target" init -q
git -C "$target" add -A

# ansible-test (of ansible-core 2.19) fetches a script that installs pip. Where its source can't be reached, a file of this
# name does the same with the pip that Python carries, and the package index. One that is there already is left alone.
bootstrap="${ANSIBLE_HOME:-$HOME/.ansible}/test/cache/get_pip_24_2.py"
if [ ! -e "$bootstrap" ]; then
    mkdir -p "$(dirname "$bootstrap")"
    cat > "$bootstrap" << 'PY'
import ensurepip
import os
import subprocess
import sys

ensurepip.bootstrap(default_pip=True)
os.environ.pop("PIP_CONFIG_FILE", None)  # ensurepip switches pip's configuration off, the machine's own CA with it
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")] or ["pip==24.2"]
subprocess.check_call([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", *wanted])
PY
fi

# Each test gets what it needs in an environment of its own, made once and kept in the user's cache.
controller=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$target"
ansible-test sanity --python "$controller" --color no "$@"

# The oldest Python of hosts, where this machine has it (pyenv's counts): do all modules compile and import there?
for folder in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin; do
    if [ -d "$folder" ]; then PATH=$PATH:$folder; fi
done
if [ $# -eq 0 ] && python3.10 -c '' 2> /dev/null; then
    ansible-test sanity --test compile --test import --python 3.10 --color no
fi

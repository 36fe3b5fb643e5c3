#!/usr/bin/env bash
# Makes the virtual environment that every other target runs in, with the checkout as its collection shannon.resilience.
#   make_env.sh FOLDER        (PYTHON names the interpreter)
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "make env: $("$python" --version) is too old; Python 3.11 or later is needed (make PYTHON=...)." >&2
    exit 1
}
stale="${ANSIBLE_HOME:-$HOME/.ansible}/collections/ansible_collections/shannon/resilience"
if [ -e "$stale" ]; then
    echo "make env: $stale would be used instead of this checkout. Move it away first." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "make env: installing python3-venv from the distribution"
        apt-get update -qq && apt-get install -y -qq python3-venv > /dev/null
    else
        echo "make env: $python has no venv module. Install it (Debian, Ubuntu: apt-get install python3-venv)." >&2
        exit 1
    fi
fi
mkdir -p .cache
log=.cache/make_env.log
echo "make env: installing requirements.txt into $venv (log: $log)"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input -r requirements.txt > "$log" 2>&1 || {
    tail -n 30 "$log" >&2
    exit 1
}
# The checkout itself is the collection: no copy that could go stale.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/ansible_collections/shannon"
ln -sfn "$PWD" "$site/ansible_collections/shannon/resilience"
touch "$venv/.ready"

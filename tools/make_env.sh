#!/usr/bin/env bash
# Makes the virtual environment that every other target runs in, with the checkout as its collection shannon.resilience.
#   make_env.sh FOLDER        (PYTHON names the interpreter; without it, the first that fits)
set -euo pipefail
venv=$1

complain() {
    echo "make env: $*" >&2
    exit 1
}

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11; do
        if fits "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || complain "no Python 3.11 or later was found. Install one, or say where it is: make env PYTHON=..."
fi
fits "$python" || complain "PYTHON=$python is not Python 3.11 or later."

# A copy of the collection in a place that Ansible searches first would be used instead of this checkout.
IFS=: read -r -a places <<< "${ANSIBLE_COLLECTIONS_PATH:-${ANSIBLE_HOME:-$HOME/.ansible}/collections:/usr/share/ansible/collections}"
for place in "${places[@]}"; do
    stale="${place/#\~/$HOME}/ansible_collections/shannon/resilience"
    if [ -e "$stale" ] && [ "$(realpath "$stale")" != "$(realpath .)" ]; then
        complain "$stale would be used instead of this checkout. Move it away first."
    fi
done

if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "make env: installing $package from the distribution"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" > /dev/null
    else
        complain "$python can't make virtual environments. Install what it lacks (Debian, Ubuntu: apt-get install $package)."
    fi
fi

mkdir -p .cache
log=.cache/make_env.log
started=$SECONDS
echo "make env: installing requirements.txt into $venv with $("$python" --version) (log: $log)"
# One that another interpreter made, or that was moved here, is of no use.
"$venv/bin/python" -c '' 2> /dev/null || rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input -r requirements.txt > "$log" 2>&1 || {
    tail -n 30 "$log" >&2
    complain "pip could not install requirements.txt; all it said is in $log."
}
# The checkout itself is the collection: no copy that could go stale.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/ansible_collections/shannon"
ln -sfn "$PWD" "$site/ansible_collections/shannon/resilience"
# Likewise the services' packages: the library under the name that it has in their wheel, and the services themselves.
mkdir -p "$site/shannon"
ln -sfn "$PWD/plugins/module_utils" "$site/shannon/resilience"
ln -sfn "$PWD/services/src/shannon/services" "$site/shannon/services"
touch "$venv/.ready"
echo "make env: done in $((SECONDS - started)) s"

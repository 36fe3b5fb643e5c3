#!/usr/bin/env bash
# Installs a release of the services from wheels alone, into a folder of its own.
#   install_release.sh DIGEST KEEP PROGRAM...
# DIGEST names the release; of the older ones the newest KEEP stay, and the current one always does. PROGRAM... are loaded
# once, to see that they can be.
set -euo pipefail
digest=$1
keep=$2
shift 2
root=/opt/shannon/services
release=$root/releases/$digest
umask 022
mkdir -p "$root/releases"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
tar -C "$wheels" -xzf /opt/shannon/wheels/services.tar.gz
rm -rf "$release"
# The distribution's pip, run from its wheel, puts the wheels in place; one in each release would take longer than they do.
python3 -m venv --without-pip "$release"
pip=("$release/bin/python" -m pip)
PYTHONPATH=$(ls /usr/share/python-wheels/pip-*.whl)
export PYTHONPATH
# What is imported is compiled below; the rest of a hundred packages never is.
"${pip[@]}" install --quiet --disable-pip-version-check --no-index --no-compile --find-links "$wheels" \
    --no-deps "$wheels"/*.whl
"${pip[@]}" check --disable-pip-version-check > /dev/null
unset PYTHONPATH
# All of them in one process: what they share is then loaded, and compiled, once.
"$release/bin/python" - "$@" <<'PYTHON'
import importlib.metadata
import sys

programs = {entry.name: entry for entry in importlib.metadata.entry_points(group="console_scripts")}
for name in sys.argv[1:]:
    programs[name].load()
PYTHON
touch "$release/.complete"
rm -f /opt/shannon/wheels/services.tar.gz

current=$(readlink "$root/current" || true)
ls -1t "$root/releases" | while read -r old; do
    if [ "$old" = "$digest" ] || [ "releases/$old" = "$current" ]; then continue; fi
    keep=$((keep - 1))
    if [ "$keep" -lt 1 ]; then rm -rf "${root:?}/releases/$old"; fi
done

#!/usr/bin/env bash
# ansible-test sanity on a staged copy of the checkout: ansible-test wants to stand in a folder
# ansible_collections/shannon/resilience and resolves links.
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

# ansible-test fetches a script that installs pip; where its source can't be reached this one does the same with the pip
# that Python carries, and the package index.
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
bootstrap="$HOME/.ansible/test/cache/get_pip_24_2.py"
if [ ! -e "$bootstrap" ]; then
    mkdir -p "$(dirname "$bootstrap")"
    cat > "$bootstrap" << 'PY'
import ensurepip
import subprocess
import sys

ensurepip.bootstrap(default_pip=True)
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")] or ["pip==24.2"]
subprocess.check_call([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", *wanted])
PY
fi
cd "$target"
ansible-test sanity --venv "default" --python "$version" --color no "$@" || exit 1

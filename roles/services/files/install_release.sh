#!/bin/bash
# Installs a release of the services from wheels alone, into a folder of its own.
#   install_release.sh DIGEST KEEP
# DIGEST names the release; of the older ones the newest KEEP stay, and the current one always does.
set -euo pipefail
digest=$1
keep=$2
root=/opt/shannon/services
release=$root/releases/$digest
umask 022
mkdir -p "$root/releases"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
tar -C "$wheels" -xzf /opt/shannon/wheels/services.tar.gz
rm -rf "$release"
python3 -m venv "$release"
# What is imported is compiled below; the rest of a hundred packages never is.
"$release/bin/pip" install --quiet --disable-pip-version-check --no-index --no-compile --find-links "$wheels" \
    --no-deps "$wheels"/*.whl
"$release/bin/pip" check --disable-pip-version-check > /dev/null
for name in gateway orchestrator llm-service agent-core vector-indexer edge-agent; do
    "$release/bin/shannon-$name" --version > /dev/null
done
touch "$release/.complete"
rm -f /opt/shannon/wheels/services.tar.gz

current=$(readlink "$root/current" || true)
ls -1t "$root/releases" | while read -r old; do
    if [ "$old" = "$digest" ] || [ "releases/$old" = "$current" ]; then continue; fi
    keep=$((keep - 1))
    if [ "$keep" -lt 1 ]; then rm -rf "${root:?}/releases/$old"; fi
done

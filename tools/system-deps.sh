#!/bin/sh
# Install the Debian packages named as arguments, each if it can be had; say plainly what was skipped. Never fails: a test
# that needs a missing program says so itself. Services that the packages bring are not started.
set -u

missing=
for package in "$@"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "system packages: all there"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "system packages: skipped, as there is no apt-get here:$missing"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "system packages: skipped, as only root may install them:$missing"
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # Exit status 101 is "action forbidden": the packages are wanted for their programs, not as running services.
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT INT TERM
fi
apt-get update -q >/dev/null 2>&1 </dev/null || echo "system packages: apt-get update failed; trying with the lists as they are"
skipped=
for package in $missing; do
    apt-get install -qy --no-install-recommends "$package" >/dev/null 2>&1 </dev/null || skipped="$skipped $package"
done
if [ -z "$skipped" ]; then
    echo "system packages: installed$missing"
else
    echo "system packages: skipped, as apt-get could not install them:$skipped"
fi

#!/bin/sh
# Install what the tests of ops/ and of the page need beside Python: Prometheus and Alertmanager with their tools,
# Chromium, and strace. It does something only as root on Debian, and only for what is missing; elsewhere it says so, and
# the tests that need these skip.
set -eu

missing=""
command -v promtool >/dev/null || missing="$missing prometheus"
command -v amtool >/dev/null || missing="$missing prometheus-alertmanager"
command -v strace >/dev/null || missing="$missing strace"
command -v chromium >/dev/null || missing="$missing chromium fonts-dejavu-core"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed (that needs root on Debian), their tests will skip:$missing" >&2
    exit 0
fi

# The tests start programs of their own; Debian would start services too.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update
# shellcheck disable=SC2086  # a list of names
apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing

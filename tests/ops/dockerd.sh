#!/bin/bash
# Run a command with a Docker engine of its own, and leave nothing behind: for machines without one, and without leave
# to pull images. Needs root, Debian's docker.io and debootstrap. The engine changes no firewall rule and publishes
# ports on loopback through its proxy; debian:bookworm-slim is made from Debian's mirror.
#
#   tests/ops/dockerd.sh FOLDER COMMAND [ARGUMENT...]
#
# FOLDER must not exist. It grows to about three times the image (a CUDA torch makes that 20 GB) and is removed.
# KEEP=1 keeps the engine's data, and uses a FOLDER that exists.
set -euo pipefail

folder=$(realpath -m "$1")
shift
if [ -e "$folder" ] && [ "${KEEP:-}" != 1 ]; then
    echo "$folder exists" >&2
    exit 2
fi
mkdir -p "$folder"
export DOCKER_HOST=unix://$folder/docker.sock

bridge=$(ls -d /sys/class/net/docker0 2>/dev/null || true) # another engine's: not ours to remove

cleanup() {
    if [ -n "${engine:-}" ]; then
        kill "$engine" 2>/dev/null || true
        wait "$engine" || true
        [ -n "$bridge" ] || ip link delete docker0 2>/dev/null || true
    fi
    umount "$folder/exec/netns/default" 2>/dev/null || true
    [ "${KEEP:-}" = 1 ] || rm -rf "$folder"
}
trap cleanup EXIT

dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/docker.pid" --host "$DOCKER_HOST" \
    --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false >"$folder/dockerd.log" 2>&1 &
engine=$!
# The client of docker.io, whatever else is first on PATH: a newer one asks for plugins.
export DOCKER=${DOCKER:-/usr/bin/docker}
until "$DOCKER" info >/dev/null 2>&1; do
    kill -0 "$engine" 2>/dev/null || { tail "$folder/dockerd.log" >&2; exit 1; }
    sleep 0.25
done

if ! "$DOCKER" image inspect debian:bookworm-slim >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/rootfs" >"$folder/debootstrap.log"
    rm -rf "$folder"/rootfs/var/cache/apt/archives/*.deb "$folder"/rootfs/var/lib/apt/lists/*
    tar -C "$folder/rootfs" -c . | "$DOCKER" import - debian:bookworm-slim >/dev/null
    rm -rf "$folder/rootfs"
fi
"$@"

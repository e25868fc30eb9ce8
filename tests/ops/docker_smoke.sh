#!/bin/bash
# Build the image with a real Docker engine, run the demo in it as locked down as ops/compose.yaml does, search it from
# outside, stop it.
#
#   tests/ops/docker_smoke.sh [BASE_IMAGE]
#
# Environment:
#   TORCH_BACKEND  build argument: cpu (default), cu130 ..., or `index` for what the package index offers
#   CA_FILE        certificates to trust while building, where a private authority is between here and the index
#   DOCKER         the client (default: docker); DOCKER_HOST names the engine as usual
#   PORT           on loopback (default: 18080)
#   CLIPS          clips per domain of the demo (default: 60)
#   WAIT_S         longest wait for it to become healthy and to find something (default: 300)
#
# No engine at hand? `tests/ops/dockerd.sh FOLDER tests/ops/docker_smoke.sh` brings one.
set -euo pipefail
cd "$(dirname "$0")/../.."

base=${1:-debian:bookworm-slim}
docker=${DOCKER:-docker}
port=${PORT:-18080}
image=streamlearn:smoke
name=streamlearn-smoke-$$

say() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }
fail() {
    say "FAILED: $*"
    "$docker" logs --tail 50 "$name" || true
    exit 1
}
cleanup() { "$docker" rm --force --volumes "$name" >/dev/null 2>&1 || true; }
trap cleanup EXIT

secret=()
[ -z "${CA_FILE:-}" ] || secret=(--secret "id=ca,src=$CA_FILE")
DOCKER_BUILDKIT=1 "$docker" build --network host "${secret[@]}" --build-arg "BASE=$base" \
    --build-arg "TORCH_BACKEND=${TORCH_BACKEND:-cpu}" -t "$image" .
say "built $("$docker" image inspect --format '{{.Size}}' "$image") bytes"

"$docker" run --rm --network none --read-only --tmpfs /tmp "$image" --help >/dev/null || fail "--help"
say "the command line works without network"

"$docker" run --detach --name "$name" --publish "127.0.0.1:$port:8080" --read-only --tmpfs /tmp:size=256m,mode=1777 \
    --cap-drop ALL --security-opt no-new-privileges:true --pids-limit 512 --health-interval 2s \
    "$image" demo --host 0.0.0.0 --port 8080 --state-dir /var/lib/streamlearn --clips-per-domain "${CLIPS:-60}" >/dev/null

deadline=$((SECONDS + ${WAIT_S:-300}))
health() { "$docker" inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$name"; }
pause() {
    case $(health) in running*) ;; *) fail "it ended" ;; esac
    [ "$SECONDS" -lt "$deadline" ] || fail "$1 within ${WAIT_S:-300} s"
    sleep 1
}
until [ "$(health)" = "running healthy" ]; do pause "not healthy"; done
say "healthy"

[ "$("$docker" exec "$name" id -u)" = 10001 ] || fail "it runs as $("$docker" exec "$name" id -u)"
"$docker" exec "$name" sh -c '! touch /opt/venv/probe 2>/dev/null' || fail "the root file system can be written"
say "runs as 10001 on a read-only root"

url=http://127.0.0.1:$port
search() {
    curl --fail --silent --show-error --max-time 10 "$url/v1/search" --header 'content-type: application/json' \
        --data '{"query": {"text": "a red circle"}, "limit": 5}'
}
until grep --quiet '"video_id"' <<<"$(search)"; do pause "no results"; done
answer=$(search)
say "answers: ${answer:0:200}"
grep --quiet '^streamlearn_index_clips [1-9]' <<<"$(curl --fail --silent "$url/metrics")" || fail "/metrics shows no clips"
grep --quiet --ignore-case '<html' <<<"$(curl --fail --silent "$url/")" || fail "/ shows no page"
say "metrics and page are there"

"$docker" stop --time 60 "$name" >/dev/null
code=$("$docker" inspect --format '{{.State.ExitCode}}' "$name")
[ "$code" = 0 ] || fail "SIGTERM ended it with $code"
say "stopped cleanly"

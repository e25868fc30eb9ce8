# streamlearn in one image: CPU by default, CUDA by build argument. docs/operations.md#the-image has the commands.
# Any Debian or Ubuntu with Python 3.11 or newer, or an official python:3.x-slim.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Which build of torch: cpu, cu130 and the like, or `index` for what the configured package index offers.
ARG TORCH_BACKEND=cpu
# Extras of pyproject.toml, separated by blanks: `oauth decord` and the like.
ARG EXTRAS=""
# Passed to `uv pip install` as it is: another index, --find-links ...
ARG EXTRA_UV_ARGS=""
# Bytecode is compiled here because a container's root file system is read-only.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON=/opt/venv/bin/python
RUN python3 -c "import ensurepip" 2>/dev/null \
 || { apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
# A private certificate authority comes as the secret `ca`, for these steps only; it is stored in no layer.
RUN --mount=type=secret,id=ca,required=false \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m venv --without-pip /opt/venv \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir "uv>=0.9,<1"
# Dependencies first: a change of the code does not fetch them again.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=secret,id=ca,required=false \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    if [ "${TORCH_BACKEND}" != index ]; then backend="--torch-backend=${TORCH_BACKEND}"; fi; \
    for extra in ${EXTRAS}; do extras="${extras:-} --extra ${extra}"; done; \
    /opt/uv/bin/uv pip install ${backend:-} ${extras:-} ${EXTRA_UV_ARGS} -c constraints.txt -r pyproject.toml
COPY README.md ./
COPY connectors connectors
COPY streamlearn streamlearn
RUN --mount=type=secret,id=ca,required=false \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    /opt/uv/bin/uv pip install ${EXTRA_UV_ARGS} --no-deps .

FROM ${BASE}
# More Debian packages: `gcc libc6-dev python3-dev` lets Triton compile its kernels in a CUDA image.
ARG APT_PACKAGES=""
RUN if ! command -v python3 >/dev/null || [ -n "${APT_PACKAGES}" ]; then \
        apt-get update \
     && apt-get install -y --no-install-recommends ca-certificates python3 ${APT_PACKAGES} \
     && rm -rf /var/lib/apt/lists/*; \
    fi \
 && groupadd --gid 10001 streamlearn \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/streamlearn --shell /usr/sbin/nologin \
        streamlearn \
 && install -d -o 10001 -g 10001 /var/lib/streamlearn /var/cache/streamlearn
COPY --from=build /opt/venv /opt/venv
# The model cache of Hugging Face and the kernel cache of Triton live below HOME, outside the state.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/streamlearn \
    HF_HOME=/var/cache/streamlearn/huggingface \
    STREAMLEARN_API__HOST=0.0.0.0 \
    STREAMLEARN_STATE_DIR=/var/lib/streamlearn \
    STREAMLEARN_LOG__FORMAT=json
USER 10001:10001
WORKDIR /var/lib/streamlearn
VOLUME ["/var/lib/streamlearn", "/var/cache/streamlearn"]
EXPOSE 8080
# Ready: a generation is loaded and searches are answered. The proxy of the environment is not for loopback.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('STREAMLEARN_API__PORT', '8080') + '/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamlearn"]
CMD ["run"]

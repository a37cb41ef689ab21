# One image for every task of the pipelines, in two targets: cpu and gpu.
#
#   make image                                  # cpu
#   make image TARGET=gpu BASE=python:3.11-slim-bookworm@sha256:...
#
# BASE needs Python 3.11 with venv, on Debian or Ubuntu; PyTorch's wheels bring their own CUDA.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
# git: the versions of the data are git revisions
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1 \
    GX_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /app

FROM base AS source
COPY requirements.lock pyproject.toml README.md ./
COPY contrique contrique
COPY components components
COPY pipelines pipelines
COPY mlflow mlflow
RUN python3 -m venv /opt/venv

FROM source AS packages-cpu
# where pip looks, if not on its own index: --build-arg PIP_INDEX_URL=..., or PIP_NO_INDEX=1 with PIP_FIND_LINKS=...
ARG PIP_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
# The default index serves the CUDA build; this one the CPU build of the same versions, which are other files: their
# hashes are not in the lock.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep -oE '^torch(vision)?==[^ ]+' requirements.lock > /tmp/torch.txt \
    && grep -E '# ([a-z]+ )*(base|platform)( |$)' requirements.lock > /tmp/all.lock \
    && grep -vE '^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' /tmp/all.lock > /tmp/packages.lock \
    && pip install --no-deps --index-url "${TORCH_INDEX}" -r /tmp/torch.txt \
    && pip install --require-hashes -r /tmp/packages.lock \
    && pip install --no-deps --no-build-isolation --editable .

FROM source AS packages-gpu
ARG PIP_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
RUN grep -E '# ([a-z]+ )*(base|platform)( |$)' requirements.lock > /tmp/packages.lock \
    && pip install --require-hashes -r /tmp/packages.lock \
    && pip install --no-deps --no-build-isolation --editable .

FROM base AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=packages-cpu /app /app
ARG VERSION=unknown
ARG REVISION=unknown
ENV CONTRIQUE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="contrique" \
    org.opencontainers.image.description="Every task of the CONTRIQUE pipelines, on CPUs" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 1000 --create-home contrique
USER 1000
CMD ["contrique", "--help"]

FROM base AS gpu
# a C compiler and the headers of libc: pretrain.compile builds its kernels where it runs
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=packages-gpu /app /app
ARG VERSION=unknown
ARG REVISION=unknown
ENV CONTRIQUE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="contrique" \
    org.opencontainers.image.description="Every task of the CONTRIQUE pipelines, on NVIDIA GPUs" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 1000 --create-home contrique
USER 1000
CMD ["contrique", "--help"]

# syntax=docker/dockerfile:1
# An image that has refseg installed and no checkout.
#   CPU:  docker build -t refseg .
#   CUDA: docker build -t refseg:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple .
#   Use:  docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work refseg quickstart --out quickstart
ARG BASE=python:3.12-slim-bookworm

# What both stages have: the base, with the distribution's Python where the base has none.
FROM ${BASE} AS python
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi

FROM python AS install
# The CPU wheels of PyTorch lie on an index of their own; PyPI has those for CUDA, which are ten times as large.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY constraints.txt ./
RUN python3 -m venv /opt/refseg \
    && grep -E '^torch(vision)?==' constraints.txt > torch.txt \
    && /opt/refseg/bin/pip install --no-cache-dir \
        --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple -r torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY refseg refseg
COPY pipelines pipelines
COPY manifests manifests
RUN /opt/refseg/bin/pip install --no-cache-dir -c constraints.txt '.[s3,demo]'

FROM python
COPY --from=install /opt/refseg /opt/refseg
RUN useradd --uid 10001 --create-home refseg
# The cache is writable for any user that `docker run --user` names.
ENV PATH=/opt/refseg/bin:$PATH REFSEG_CACHE=/tmp/refseg
USER 10001
WORKDIR /work
ENTRYPOINT ["refseg"]
CMD ["--help"]

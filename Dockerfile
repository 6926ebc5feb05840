# syntax=docker/dockerfile:1
# The command line in an image: docker build -t spatialdata-segment .
#
# EXTRAS        extras of the package; "cluster" alone makes a small image without torch
# TORCH_INDEX   where torch comes from; empty: the default, with CUDA, which runs on the CPU as well
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=cellpose,stardist,cluster
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY .ci/constraints.txt ./
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; fi
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[$EXTRAS]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/venv /opt/venv
# compiled kernels, fonts and models go where any user may write
ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/cache/numba \
    MPLCONFIGDIR=/cache/matplotlib \
    CELLPOSE_LOCAL_MODELS_PATH=/cache/models \
    KERAS_HOME=/cache/keras
RUN mkdir -m 1777 /cache && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["spatialdata-segment"]
CMD ["--help"]

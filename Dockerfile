# A node in a container: see docs/operations.md.
#   docker build -t understudy .                                     the torch build that pip finds by itself
#   docker build -t understudy --build-arg TORCH_INDEX=ADDRESS .     the one of PyTorch's indexes: for CPUs, or for a CUDA
#   docker build -t understudy --build-arg EXTRA=hf .                with what data.source = "huggingface" needs
ARG BASE=python:3.11-slim

# The list alone, so that other changes of pyproject.toml do not fetch the dependencies again.
FROM ${BASE} AS needed
ARG EXTRA=
COPY pyproject.toml constraints.txt /needed/
RUN python3 -c 'import sys, tomllib; project = tomllib.load(open("/needed/pyproject.toml", "rb"))["project"]; \
    print(*project["dependencies"], *(project["optional-dependencies"][sys.argv[1]] if sys.argv[1] else ()), sep="\n")' \
    "$EXTRA" >/needed/requirements.txt

# Dependencies change seldom: a layer of their own, which an upgrade of understudy need not fetch again.
FROM ${BASE} AS dependencies
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/understudy
COPY --from=needed /needed/requirements.txt /needed/constraints.txt /needed/
RUN /opt/understudy/bin/pip install --quiet -c /needed/constraints.txt -r /needed/requirements.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}

FROM dependencies AS package
WORKDIR /build
COPY pyproject.toml LICENSE README.md ./
COPY protocol protocol
COPY node node
COPY bootstrap bootstrap
RUN /opt/understudy/bin/pip wheel --quiet --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="understudy" \
      org.opencontainers.image.description="A decentralized training node that survives the loss of any peer without checkpoints" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# /data: identity and events. /join: where compose.yaml passes the join string on.
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin understudy \
    && install -d -o understudy -g understudy -m 700 /data \
    && install -d -o understudy -g understudy /join
COPY --from=dependencies /opt/understudy /opt/understudy
COPY --from=package /wheel /wheel
RUN /opt/understudy/bin/pip install --quiet --no-cache-dir --no-deps --no-index /wheel/*.whl && rm -r /wheel
ENV PATH=/opt/understudy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    UNDERSTUDY_HOST_MADDR=/ip4/0.0.0.0/tcp/4001 \
    UNDERSTUDY_IDENTITY=/data/identity.key \
    UNDERSTUDY_EVENTS=/data/events.jsonl
USER understudy
WORKDIR /data
VOLUME /data
EXPOSE 4001/tcp
# SIGTERM is the node's signal to say goodbye. It handles it as process 1 too; --init is welcome and not needed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python3", "-P", "-m", "understudy.node.health"]
ENTRYPOINT ["understudy"]
CMD ["--help"]

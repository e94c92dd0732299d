# One image for everything: `conveyor up` by itself, or one of the services `gateway-svc`,
# `scheduler-svc`, `agent-svc` and `acp-svc`. How to use it: docs/how-to/compose.md

# With a digest, for builds that can be repeated: python:3.11-slim-bookworm@sha256:…
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What the suite needs and how it is built, out of pyproject.toml: when nothing of that changes, the
# next stage finds its work done, whatever else changed in there.
FROM ${BASE_IMAGE} AS needed
WORKDIR /needed
COPY pyproject.toml ./
ARG EXTRAS="openai anthropic google mcp"
RUN python3 -c "import sys, tomllib; \
it = tomllib.load(open('pyproject.toml', 'rb')); more = it['project']['optional-dependencies']; \
print(*it['project']['dependencies'], *(n for e in sys.argv[1:] for n in more[e]), sep='\n'); \
print(*it['build-system']['requires'], sep='\n', file=sys.stderr)" \
    ${EXTRAS} > run.txt 2> build.txt

# The environment is made here, with pip, and taken over as a whole, without it.
FROM ${BASE_IMAGE} AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1
RUN python3 -m venv --without-pip /opt/conveyor && python3 -m venv /tools
COPY constraints.txt ./
COPY --from=needed /needed/run.txt /needed/build.txt ./
# Optional secrets, for builds behind a proxy or with a mirror; nothing of them stays in the image:
# `ca` are the certificates that pip trusts, `pip` is a pip.conf.
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip \
    if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi \
    && if [ -s /run/secrets/ca ]; then set -- --cert /run/secrets/ca; fi \
    && /tools/bin/pip install --quiet "$@" --constraint constraints.txt --requirement build.txt \
    && python3 -m pip --python /opt/conveyor/bin/python install --quiet "$@" \
        --constraint constraints.txt --requirement run.txt
COPY . .
RUN /tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . \
    && python3 -m pip --python /opt/conveyor/bin/python install --quiet --no-index --no-deps dist/*.whl \
    # Nothing can be written where they run, so the bytecode is made now, and never looked at again.
    && /opt/conveyor/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        /opt/conveyor/lib

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Conveyor" \
      org.opencontainers.image.description="Runs teams of LLM agents for real customers" \
      org.opencontainers.image.licenses="Apache-2.0"
# Some base images come without the bytecode of Python's own library: every start, and every health
# check, would compile what it needs of it anew.
RUN python3 -m compileall -q -j 0 -x '/(test|tests|idlelib|lib2to3|site-packages|dist-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# Whoever mounts directories of the machine may want the user to be the one who owns them.
ARG UID=10001
ARG GID=10001
RUN groupadd --gid "${GID}" conveyor \
    && useradd --uid "${UID}" --gid conveyor --no-create-home --home-dir /conveyor/home \
        --shell /usr/sbin/nologin conveyor \
    # A new volume takes over the owner of the directory that it is mounted on.
    && install --directory --owner conveyor --group conveyor --mode 700 /conveyor/data /conveyor/home \
    && install --directory --owner conveyor --group conveyor /workspaces
COPY --from=build /opt/conveyor /opt/conveyor
ENV PATH=/opt/conveyor/bin:$PATH HOME=/conveyor/home LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    # The loopback address of a container reaches nobody.
    CONVEYOR_GATEWAY__HTTP=0.0.0.0:8080 CONVEYOR_GATEWAY__GRPC=0.0.0.0:50050
# conveyor.toml is looked for here, and ./data is where SQLite files are by default.
WORKDIR /conveyor
USER ${UID}:${GID}
EXPOSE 8080 50050
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 CMD ["conveyor-health"]
CMD ["conveyor", "up"]

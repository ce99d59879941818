# gptjax in a container. The README's section "Docker" says how to run it.
#
#   docker build -t gptjax .                             for a CPU
#   docker build -t gptjax --build-arg EXTRAS=cuda12 .   for a GPU, or cuda13, by its driver
#
# EXTRAS: those of pyproject.toml, separated by commas. BASE: any image with Python >= 3.11, its
# venv, and the shell and coreutils of Debian.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG EXTRAS=
WORKDIR /app
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# What it depends on first, for packages that are still empty: they stay cached while the source changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import pathlib, tomllib; \
    project = tomllib.loads(pathlib.Path('pyproject.toml').read_text()); \
    names = project['tool']['setuptools']['packages']; \
    [pathlib.Path(name.replace('.', '/')).mkdir() for name in names]" \
    && python -m pip install --disable-pip-version-check -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
COPY gptjax gptjax
COPY configs configs
COPY train.py sample.py ./
COPY docker/entrypoint.sh docker/
# Compiled here, since no process writes into /app later. Trusted unchecked: copying a file may
# change its date.
RUN python -m compileall -q --invalidation-mode unchecked-hash gptjax train.py sample.py \
    && chmod 755 docker/entrypoint.sh \
    && ln -s /runs runs \
    && ln -s /data data

FROM ${BASE}
# What it writes goes to the two volumes, which any --user may write to, and to /tmp.
RUN mkdir -m 1777 /data /runs
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=gptjax \
    GPTJAX_CACHE=/data/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/data", "/runs"]
USER 1000:1000
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["help"]

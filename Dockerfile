# gptjax in a container. The README's section "Docker" says how to run it.
#
#   docker build -t gptjax .                             for a CPU
#   docker build -t gptjax --build-arg EXTRAS=cuda12 .   for a GPU, or cuda13, by its driver
#
# EXTRAS: extras of pyproject.toml, separated by commas. BASE: any image with Python >= 3.11, its
# venv, and Debian's shell and coreutils.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG EXTRAS=
WORKDIR /app
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Dependencies are installed first, for an empty package: this layer stays cached while the source
# changes. The installation is editable, so it finds the source in /app.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir gptjax && touch gptjax/__init__.py \
    && python -m pip install --disable-pip-version-check -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
COPY gptjax gptjax
COPY configs configs
COPY docker/entrypoint.sh docker/
# Compiled here, because /app is read-only later. Without a check of dates: copies change them.
RUN python -m compileall -q --invalidation-mode unchecked-hash gptjax \
    && chmod 755 docker/entrypoint.sh \
    && ln -s /runs runs \
    && ln -s /data data

FROM ${BASE}
# Files are written to the two volumes, which any --user may write to, and to /tmp.
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
CMD ["--help"]

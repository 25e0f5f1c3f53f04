# docker build -t hubmesh .
# docker run -p 127.0.0.1:8090:8090 -p 8091:8091 -v hubmesh:/data hubmesh
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proxy proxy
COPY mesh mesh
RUN python -m venv /opt/hubmesh \
    && /opt/hubmesh/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin hubmesh \
    && install --directory --owner=hubmesh --group=hubmesh /data
COPY --from=build /opt/hubmesh /opt/hubmesh
USER hubmesh
# Listen on all interfaces of the container: -p decides which addresses of the host reach them.
ENV PATH=/opt/hubmesh/bin:$PATH \
    HUBMESH_DATA_DIR=/data \
    HUBMESH_LISTEN=0.0.0.0:8090 \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8090 8091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8090/-/health', timeout=2)"]
ENTRYPOINT ["hubmesh"]
CMD ["serve"]

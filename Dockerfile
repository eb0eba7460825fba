# A server with the embedded PostgreSQL; set FLOWLEDGER_DATABASE_URL to use another, and the volume is not needed.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY server server
COPY generated generated
COPY migrations migrations
COPY clients/python/flowledger_client clients/python/flowledger_client
RUN python -m venv /opt/flowledger \
 && /opt/flowledger/bin/pip install --no-cache-dir -c constraints.txt '.[embedded]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 flowledger \
 && install -d -o flowledger -g flowledger -m 0700 /data
COPY --from=build /opt/flowledger /opt/flowledger
ENV PATH=/opt/flowledger/bin:$PATH \
    FLOWLEDGER_DATA_DIR=/data
USER flowledger
VOLUME /data
EXPOSE 50051
# Listens on loopback until FLOWLEDGER_HOST and FLOWLEDGER_ALLOW_TRUSTED_REMOTE say otherwise: put a proxy that sets the caller in front.
STOPSIGNAL SIGTERM
ENTRYPOINT ["flowledger"]
CMD ["serve"]

# A small image with the server and the command line. It has no shell and does not run as root.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p registry-server -p registryctl \
    && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/registry-server /src/target/release/registryctl /usr/local/bin/
# For the SQLite file, unless REGISTRY_DATABASE_URL names a PostgreSQL.
COPY --from=build --chown=nonroot:nonroot /data /data
WORKDIR /data
USER nonroot
ENV REGISTRY_LISTEN=0.0.0.0:8009 REGISTRY_DATABASE_URL=sqlite:///data/agent-registry.db
# After SIGTERM the server is not ready for this long, then finishes requests in flight for up to ten seconds. Docker kills a
# container after ten seconds by default: use docker stop --time 30.
ENV REGISTRY_DRAIN_DELAY=5s
EXPOSE 8009
VOLUME /data
# Requests GET /health, which needs no token.
HEALTHCHECK --interval=10s --timeout=3s CMD ["/usr/local/bin/registryctl", "ping", "--registry-url", "http://127.0.0.1:8009"]
ENTRYPOINT ["/usr/local/bin/registry-server"]

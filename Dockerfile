# The server and the command line in a small image, without a shell and not as root.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p registry-server -p registryctl \
    && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/registry-server /src/target/release/registryctl /usr/local/bin/
# SQLite's file goes there, where no PostgreSQL is named.
COPY --from=build --chown=nonroot:nonroot /data /data
WORKDIR /data
USER nonroot
ENV REGISTRY_LISTEN=0.0.0.0:8009 REGISTRY_DATABASE_URL=sqlite:///data/agent-registry.db
# On SIGTERM it says for so long that it is not ready, and then lets requests in flight finish for up to ten seconds. Docker
# waits for ten seconds in all unless told otherwise: docker stop --time 30.
ENV REGISTRY_DRAIN_DELAY=5s
EXPOSE 8009
VOLUME /data
# It asks GET /health, which needs no token.
HEALTHCHECK --interval=10s --timeout=3s CMD ["/usr/local/bin/registryctl", "ping", "--registry-url", "http://127.0.0.1:8009"]
ENTRYPOINT ["/usr/local/bin/registry-server"]

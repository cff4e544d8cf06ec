# syntax=docker/dockerfile:1
#
# Two images from one build:
#
#   docker build --target server -t pi-server .
#   docker build --target client -t pi-client .
#
#   docker run -p 4433:4433/udp -v pi-state:/var/lib/pianissimo \
#       -v "$PWD/models:/models:ro" pi-server --models /models
#   docker run --network host -v pi-client:/var/lib/pianissimo -v "$PWD:/work:ro" pi-client \
#       prepare --server HOST:4433 --fingerprint HEX -n 10
#
# With --build-arg FEATURES=shared-store, several servers can share a database and an object store.
# The state volume holds secrets and must never be restored from a copy; see docs/operations.md.

ARG RUST=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST}-slim-${DEBIAN} AS build
ARG FEATURES=""
WORKDIR /src
COPY . .
# The caches make the next build a short one; what is needed of them is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p pi-runtime --features "$FEATURES" \
        --bin pi-server --bin pi-client \
    && mkdir /out \
    && cp target/release/pi-server target/release/pi-client /out/

FROM debian:${DEBIAN}-slim AS base
# A number, for platforms that insist on a user that is not root.
RUN groupadd --system --gid 10001 pianissimo \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/pianissimo \
        --shell /usr/sbin/nologin pianissimo \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/pianissimo
USER 10001:10001
WORKDIR /work
VOLUME /var/lib/pianissimo

FROM base AS client
COPY --from=build /out/pi-client /usr/local/bin/pi-client
ENV PI_CLIENT_STATE=/var/lib/pianissimo/client
# Other containers have processors of their own to compute on.
ENTRYPOINT ["/usr/local/bin/pi-client", "--unbound"]
CMD ["--help"]

FROM base AS server
ARG FEATURES=""
USER root
# Whoever talks to an object store over TLS needs authorities; clients pin or bring theirs.
RUN if [ -n "$FEATURES" ]; then \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates \
        && rm -rf /var/lib/apt/lists/*; \
    fi
USER 10001:10001
COPY --from=build /out/pi-server /usr/local/bin/pi-server
ENV PI_SERVER_STATE=/var/lib/pianissimo/server \
    PI_SERVER_LISTEN=0.0.0.0:4433 \
    PI_SERVER_METRICS=0.0.0.0:9464 \
    PI_SERVER_UNBOUND=true \
    MALLOC_ARENA_MAX=2
EXPOSE 4433/udp 9464/tcp
# The image has bash and no HTTP client.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200'"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/pi-server"]
CMD ["--models", "/models"]

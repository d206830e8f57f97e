# Two stages: build with the pinned toolchain, run without it and without root.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
COPY . .
RUN cargo build --release --locked --workspace --bins

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home arbees
COPY --from=build /src/target/release/arbees /src/target/release/arbees-orchestrator /src/target/release/arbees-shard \
    /src/target/release/arbees-projector /src/target/release/arbees-feed /usr/local/bin/
USER arbees
EXPOSE 8080
CMD ["arbees", "--help"]

# The operator's image. No container engine was there to build it where it was written: tests/chart.rs compares it with
# the image that the tests and the demo run (infrastructure/local-kubernetes/lib/operator.sh).
#   docker build --tag dialog-operator .

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY testkit/Cargo.toml testkit/
# Dependencies first, so that a change of the source does not build them again.
RUN mkdir -p src testkit/src \
 && touch src/lib.rs testkit/src/lib.rs \
 && echo 'fn main() {}' >src/main.rs \
 && cargo build --locked --release --package dialog-operator --bin dialog-operator \
 && rm -r src
COPY infrastructure/citus infrastructure/citus
COPY src src
# cargo goes by times, and a copied file may be older than what was built above.
RUN touch src/main.rs src/lib.rs && cargo build --locked --release --package dialog-operator --bin dialog-operator

# glibc of the same Debian, CA certificates, no shell and no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /source/target/release/dialog-operator /dialog-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/dialog-operator"]
CMD ["run"]

# The broker as an image: one static program, a directory for its data, and nothing else.
#
#   docker build -t aminofox/robust:0.1.0 .
#   docker run -p 127.0.0.1:8686:8686 -v robust-data:/var/lib/robust aminofox/robust:0.1.0
#
# It builds what is in the checkout, for the platform that --platform names.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY . .
WORKDIR /src/cmd/robust
RUN --mount=type=cache,target=/go/pkg/mod \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o image/bin/robust .
# A volume takes the owner of what it covers. Only what is copied can be given one, so the
# directory is made here.
RUN mkdir -p image/var/lib/robust

FROM scratch
LABEL org.opencontainers.image.title="robust" \
      org.opencontainers.image.description="Broker and command line of the Robust message queue" \
      org.opencontainers.image.source="https://github.com/aminofox/robust-go-sdk" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /src/cmd/robust/image/bin/robust /usr/bin/robust
COPY --from=build --chown=65532:65532 /src/cmd/robust/image/var /var
USER 65532:65532
# Settings of robust serve; robust serve --help names all of them. Port 8687 has /metrics,
# /healthz and /readyz.
ENV ROBUST_ADDR=:8686 \
    ROBUST_HTTP=:8687 \
    ROBUST_DATA=/var/lib/robust \
    ROBUST_BROKERS=127.0.0.1:8686
EXPOSE 8686 8687
VOLUME /var/lib/robust
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/bin/robust", "ping"]
ENTRYPOINT ["/usr/bin/robust"]
CMD ["serve"]

# The command gossip-pga and the library, for CPUs: docker build --tag=gossip-pga .
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY tf_gossip_pga tf_gossip_pga
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM python:3.11-slim
# The versions in requirements.txt.
RUN pip install --no-cache-dir tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6 absl-py==2.5.1
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && useradd --create-home --home-dir=/worker --uid=1000 worker
USER worker
WORKDIR /worker
CMD ["gossip-pga", "--help"]

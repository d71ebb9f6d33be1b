# The serving image: no torch, no training stack. Mount a bundle at /bundle:
#   docker run --gpus all -p 50051:50051 -v "$PWD/bundle:/bundle:ro" defectlens
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --uid 10001 defectlens

WORKDIR /opt/defectlens
COPY pyproject.toml requirements.lock README.md LICENSE defectlens.py ./
COPY protos protos
COPY vision vision
COPY serving serving
COPY training training

RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --constraint requirements.lock uv \
    && .venv/bin/uv pip install --no-cache --python .venv/bin/python --constraint requirements.lock .

USER defectlens
ENV PATH=/opt/defectlens/.venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import sys; from serving import InspectionClient; sys.exit(not InspectionClient('127.0.0.1:50051').is_ready())"]
ENTRYPOINT ["defectlens"]
CMD ["serve", "--bundle", "/bundle", "--address", "0.0.0.0:50051"]

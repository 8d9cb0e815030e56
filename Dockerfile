# The pinned environment on a CUDA base. Build: docker build -t feature-survival .
# Run:   docker run --gpus all feature-survival
# Yours: docker run --gpus all -v "$PWD":/workspace feature-survival
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The environment lies outside /workspace, so that a mounted checkout does not hide it.
ENV VENV=/opt/feature-survival
ENV PATH=${VENV}/bin:${PATH}
WORKDIR /workspace
COPY requirements.lock pyproject.toml Makefile README.md LICENSE ./
COPY src ./src
RUN make env VENV=${VENV}

COPY . .
RUN git config --system --add safe.directory /workspace \
    && useradd --create-home reader \
    && chown -R reader: /workspace
USER reader
CMD ["sh", "-c", "feature-survival data && dvc repro && cat paper_figures/cells.md"]

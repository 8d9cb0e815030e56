# The pinned environment on a CUDA base; the repository lies in /workspace, copied or mounted.
#   docker build -t feature-survival .
#   docker run --gpus all feature-survival                                   # the copy inside
#   docker run --gpus all -v "$PWD":/workspace feature-survival dvc repro    # your checkout
# Other users than uid 1000, tokens, keeping what was computed: REPRODUCE.md, "In a container".

# PyTorch's wheel brings CUDA 13.0's libraries itself; a base of that version has the container runtime refuse a driver too
# old for them. The digest is the multi-platform index's: docker buildx imagetools inspect nvidia/cuda:TAG prints it.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1

# The base and every Python package are pinned; Ubuntu's archive keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Python 3.11, not Ubuntu's 3.12: numpy's wheels for 3.12 have fewer modules, and so the corpus would be another.
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_PYTHON_BIN_DIR=/usr/local/bin
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --no-cache-dir uv==0.12.23 \
    && /opt/uv/bin/uv python install 3.11.17
ENV PYTHON=python3.11

# The environment lies outside /workspace, so that a mounted checkout does not hide it; its editable install points at
# /workspace/src, so that a mounted checkout's sources are what runs.
ENV VENV=/opt/feature-survival
ENV PATH=${VENV}/bin:${PATH}
WORKDIR /workspace
COPY requirements.lock pyproject.toml Makefile README.md LICENSE ./
COPY src ./src
RUN PIP_NO_CACHE_DIR=1 make env VENV=${VENV}

# DVC wants a git repository; its history stays outside. uid 1000 is most hosts' first user; the home is open to every uid,
# so that `--user "$(id -u):$(id -g)"` works for a checkout that belongs to somebody else.
COPY . .
RUN git init --quiet \
    && git config --system --add safe.directory /workspace \
    && mkdir -p /home/reader/.cache/huggingface \
    && chmod -R 0777 /home/reader \
    && chown -R 1000:1000 /workspace
ENV HOME=/home/reader USER=reader
ENV HF_HOME=${HOME}/.cache/huggingface
USER 1000:1000
# The corpus is made before the first command of DVC, which can name it but not make it.
ENTRYPOINT ["sh", "-c", "[ -w . ] || { echo \"error: $PWD is not writable for uid $(id -u): docker run --user $(stat -c %u:%g .)\" >&2; exit 2; }; [ \"$1\" != dvc ] || [ ! -e data.dvc ] || [ -e data ] || feature-survival data >&2 || exit; exec \"$@\"", "study"]
# As `make reproduce`.
CMD ["sh", "-c", "feature-survival check && feature-survival data && { feature-survival pull || true; } && feature-survival grid --allow-missing && feature-survival verdicts"]

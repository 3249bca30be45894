# qexport with every runtime that processors can have; models and results are mounted:
#   docker build -t qexport .
#   docker run --rm -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache/huggingface" qexport run recipe.yaml -o out
# mlx needs glibc 2.35 or newer: bookworm has 2.36.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 HF_HOME=/cache/huggingface NUMBA_CACHE_DIR=/cache/numba XDG_CACHE_HOME=/cache
# numba compiles the encoders, and keeps them; llama.cpp's library wants OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

# torch for processors is a tenth of the size of the one with CUDA. --build-arg TORCH_INDEX= takes that of PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /src/
RUN pip install --constraint /src/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

COPY . /src
RUN pip install --constraint /src/constraints.txt '/src[all]' && qexport --version

RUN mkdir -p /cache && chmod 1777 /cache
WORKDIR /work
ENTRYPOINT ["qexport"]
CMD ["--help"]

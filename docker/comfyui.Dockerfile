# A ComfyUI server, for who has none yet: there is no official image. Built from its repository at a release that comfyd is tested against.
#
# docker build -f docker/comfyui.Dockerfile -t comfyui docker                                        for NVIDIA
# docker build -f docker/comfyui.Dockerfile -t comfyui --build-arg TORCH_INDEX=.../whl/cpu docker    without a GPU: slow, and enough to try
#
# Everything it reads and writes lies under /data: models, custom_nodes, input, output, temp and user.

FROM python:3.12-slim-bookworm
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI.git
ARG COMFYUI_TAG=v0.33.0
# cu130 wants a driver of version 580 or newer; older drivers take .../whl/cu126. For AMD .../whl/rocm6.4 and its own devices.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

# git fetches ComfyUI, and custom nodes later; libgl and libglib are what OpenCV loads, which many of those use.
RUN apt-get update && \
    apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 && \
    rm -rf /var/lib/apt/lists/*
RUN git clone --depth 1 --branch "$COMFYUI_TAG" "$COMFYUI_REPOSITORY" /comfyui
WORKDIR /comfyui
# PyTorch first and apart: it is most of the size and changes least.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install torch torchvision torchaudio --index-url "$TORCH_INDEX"
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r requirements.txt

# Custom nodes may want a home to keep things in.
RUN groupadd --gid 65532 comfyui && \
    useradd --uid 65532 --gid 65532 --home-dir /data --no-create-home comfyui && \
    install -d -o 65532 -g 65532 /data /data/models /data/custom_nodes /data/input /data/output /data/temp /data/user
VOLUME /data
USER 65532:65532
ENV HOME=/data \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
EXPOSE 8188
# Loading PyTorch takes a while. curl is not there, and need not be.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8188/system_stats', timeout=4)"]
# Its database would otherwise lie beside the program.
ENTRYPOINT ["python", "main.py", "--listen", "0.0.0.0", "--port", "8188", "--base-directory", "/data", \
    "--database-url", "sqlite:////data/user/comfyui.db", "--disable-auto-launch"]

# CPU:  docker build -t monai_usfm .
# GPU:  docker build -t monai_usfm:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#       docker run --rm --gpus all --shm-size 8g -v "$PWD":/work monai_usfm:gpu train --task segmentation --dataset_dir DATA
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/monai_usfm
COPY requirements.txt constraints.txt ./
# The version of torch is that of requirements.txt; only the build (CPU or CUDA) is chosen here.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e ".[augment,weights]" \
    && useradd --create-home --uid 1000 usfm
USER 1000
WORKDIR /work
ENTRYPOINT ["monai-usfm"]
CMD ["--help"]

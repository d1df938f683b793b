# The service's two images, two for training, and one for curation, from one file:
#
#   docker build --target cpu -t anyclass:0.1.0-cpu .
#   docker build --target gpu -t anyclass:0.1.0-gpu .
#   docker build --target training -t anyclass-training:0.1.0 .
#   docker build --target training-ray -t anyclass-training-ray:0.1.0 .
#   docker build --target curation-ray -t anyclass-curation-ray:0.1.0 .
#
# All stand on the same small base. The GPU image needs no CUDA base image: the CUDA runtime, cuBLAS, cuFFT and cuDNN
# come as pip packages with onnxruntime-gpu[cuda,cudnn], at the versions constraints-gpu.txt pins, and the driver is the
# host's, mounted by the NVIDIA container toolkit. A CUDA base image would bring a second copy of gigabytes. For training
# they come with torch, which names their versions itself.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    # Also in build isolation, where the build backend is installed: the first for pip before 25.3, the second since.
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt
# Without pip inside: nothing in the final environment can install anything.
RUN python -m venv --without-pip /opt/venv
WORKDIR /src
# The dependencies first, against empty packages and texts, so that a change of source or README keeps this layer.
COPY pyproject.toml constraints.txt constraints-gpu.txt ./
RUN mkdir service model_export \
    && touch service/__init__.py model_export/__init__.py README.md LICENSE

FROM build AS build-cpu
RUN pip --python /opt/venv/bin/python install -c constraints.txt ".[cpu]"
COPY README.md LICENSE ./
COPY service service
COPY model_export model_export
RUN pip --python /opt/venv/bin/python install --no-deps --force-reinstall .

FROM build AS build-gpu
RUN pip --python /opt/venv/bin/python install -c constraints.txt -c constraints-gpu.txt ".[gpu]"
COPY README.md LICENSE ./
COPY service service
COPY model_export model_export
RUN pip --python /opt/venv/bin/python install --no-deps --force-reinstall .

FROM build AS build-training
# cpu: also where GPUs train, for a bundle as a teacher runs on the CPU.
RUN pip --python /opt/venv/bin/python install -c constraints.txt ".[cpu,train]"
COPY README.md LICENSE ./
COPY service service
COPY model_export model_export
RUN pip --python /opt/venv/bin/python install --no-deps --force-reinstall .

FROM build-training AS build-training-ray
# k8s/training-ray names this version too.
RUN pip --python /opt/venv/bin/python install -c constraints.txt "ray[default]==2.60.0"

FROM build AS build-curation-ray
# cpu: the runtime of bundles, for vectors and scores. ray[default]: the head's dashboard, where a RayJob is submitted;
# k8s/curation-ray names this version too.
RUN pip --python /opt/venv/bin/python install -c constraints.txt ".[cpu,curate,scale]" "ray[default]==2.60.0"
COPY README.md LICENSE ./
COPY service service
COPY model_export model_export
RUN pip --python /opt/venv/bin/python install --no-deps --force-reinstall .

FROM python:3.12-slim-bookworm AS training-runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    # torch and Ray write caches; no other folder need be writable.
    HOME=/tmp \
    # What the NVIDIA container toolkit mounts the driver for.
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /tmp
# k8s/training starts torchrun in its place.
ENTRYPOINT ["anyclass-export"]
CMD ["--help"]

FROM training-runtime AS training
COPY --from=build-training /opt/venv /opt/venv

FROM training-runtime AS training-ray
COPY --from=build-training-ray /opt/venv /opt/venv

FROM training-runtime AS curation-ray
COPY --from=build-curation-ray /opt/venv /opt/venv

FROM python:3.12-slim-bookworm AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ANYCLASS_HOST=0.0.0.0 \
    ANYCLASS_PORT=8000 \
    # A container rarely keeps a cache, and replicas should choose the same provider: docs/providers.md.
    ANYCLASS_TUNE=false
# A number, not a name: Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client and not urllib: a proxy in the environment must not be asked about this very container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['ANYCLASS_PORT']), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["anyclass"]
CMD ["serve"]

FROM runtime AS gpu
# What the NVIDIA container toolkit mounts the driver for.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    ANYCLASS_PROVIDER=cuda
COPY --from=build-gpu /opt/venv /opt/venv

# Last, so that a build without --target is this one.
FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv

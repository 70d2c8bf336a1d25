# A server of an exported network (docs/serve.md):
#   docker build --tag atnet .
#   docker run --rm --publish 8000:8000 --env ATNET_TOKEN --volume "$PWD/model.onnx:/model.onnx:ro" atnet
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /atnet
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# The second index has torch's CPU build; the package depends on torch, though the server does not use it.
RUN pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]'

RUN useradd --create-home --uid 10001 atnet
USER atnet
WORKDIR /home/atnet
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["atnet", "serve", "--host", "0.0.0.0", "--weights", "/model.onnx"]

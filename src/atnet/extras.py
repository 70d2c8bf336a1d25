"""Parts that are installed on demand: what they need beyond the core, and the command that brings it."""

from importlib.util import find_spec

from atnet.errors import MissingExtraError

EXTRAS = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("onnx", "onnxruntime", "prometheus_client", "starlette", "uvicorn"),
}
"""The modules that each extra of pyproject.toml brings."""


def require(extra: str) -> None:
    """Raises MissingExtraError, with the pip command to type, unless the extra is installed."""
    if missing := _missing(extra):
        raise MissingExtraError(f"needs {', '.join(missing)}, not installed here: pip install 'atnet[{extra}]'")


def is_installed(extra: str) -> bool:
    return not _missing(extra)


def _missing(extra: str) -> list[str]:
    return [module for module in EXTRAS[extra] if find_spec(module) is None]

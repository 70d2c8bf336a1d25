"""Parts that are installed on demand: what they need beyond the core, and the command that brings it."""

from importlib.util import find_spec

from atnet.errors import MissingExtraError

EXTRAS = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "mlflow": ("mlflow",),
    "serve": ("onnx", "onnxruntime", "prometheus_client", "starlette", "uvicorn"),
    "study": ("cmaes", "optuna"),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "video": ("cv2",),
    "wandb": ("wandb",),
}
"""The modules that each extra of pyproject.toml brings."""


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtraError, with the pip command to type, unless these modules of the extra, or all, are there."""
    if missing := _missing(modules or EXTRAS[extra]):
        raise MissingExtraError(f"needs {', '.join(missing)}, not installed here: pip install 'atnet[{extra}]'")


def is_installed(*modules: str) -> bool:
    return not _missing(modules)


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if find_spec(module) is None]

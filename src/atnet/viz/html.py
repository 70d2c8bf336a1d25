"""Pages that stand alone: nothing is fetched, every text is escaped, images are inside."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from atnet.errors import ConfigError
from atnet.files import write_whole


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a template of this folder with its values. Raises ConfigError if the file cannot be written."""
    templates = Environment(loader=PackageLoader("atnet", "viz"), autoescape=True, undefined=StrictUndefined)
    page = templates.get_template(template).render(values)
    try:
        write_whole(path, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def jpeg_address(image: Image.Image) -> str:
    """A photo as the address of itself."""
    written = io.BytesIO()
    image.convert("RGB").save(written, "JPEG", quality=85)
    return _address("jpeg", written.getvalue())


def png_address(data: bytes) -> str:
    """A PNG file as the address of itself."""
    return _address("png", data)


def _address(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

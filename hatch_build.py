"""Puts onnxruntime-web into the package when it is built or installed, so that `atnet web` needs no network."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Without npm the package is built all the same: `atnet web` alone needs the files, and says what to do."""
        sys.path.insert(0, str(Path(self.root, "src")))
        from atnet.errors import ConfigError
        from atnet.export.runtime import fetch_runtime

        try:
            folder = fetch_runtime()
        except ConfigError as error:
            self.app.display_warning(f"`atnet web` will not work: {error}")
        else:
            build_data["artifacts"].append(f"/src/atnet/export/{folder.name}/*")

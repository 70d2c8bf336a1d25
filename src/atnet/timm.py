"""`import atnet.timm` registers AT-Net's names in timm; `python -m atnet.timm SCRIPT ARGS` runs a script with them."""

import runpy
import sys
from pathlib import Path
from typing import NoReturn

import timm

from atnet.models.registry import *  # noqa: F403
from atnet.models.registry import CONVMIXER, default_cfgs, pretrained_cfg  # noqa: F401


def main() -> None:
    """Runs a script that creates timm models, timm's own train.py for one, as `python SCRIPT ARGS` does.

    Ends with exit code 2 and one line if there is none.
    """
    if len(sys.argv) < 2:
        _stop("no script given: python -m atnet.timm train.py ARGS")
    script = Path(sys.argv[1])
    if not script.is_file():
        _stop(
            f"{script}: no such script; timm's train.py and validate.py are not in its package, but in its source "
            f"repository at v{timm.__version__}"
        )
    del sys.argv[0]
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


def _stop(why: str) -> NoReturn:
    print(f"atnet.timm: {why}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

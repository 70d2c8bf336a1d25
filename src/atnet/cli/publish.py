"""`atnet publish`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.files import quoted


def publish(
    *,
    weights: Path = Path("runs/last"),
    to: str,
    onnx: Annotated[bool, Parameter(negative=())] = False,
    web: Annotated[bool, Parameter(negative=())] = False,
    private: Annotated[bool, Parameter(negative=())] = False,
    licence: Annotated[str | None, Parameter(name=["--licence", "--license"])] = None,
    data: str | None = None,
    model: str = "",
) -> None:
    """Write weights as a folder that timm, transformers and AT-Net load, with a model card; or push it to the hub.

    Parameters
    ----------
    weights
        A run, a folder or a weights file; of a run the moving average of the last epoch. Or pretrained ones:
        timm:resnet18, hf-hub:user/name, local-dir:FOLDER.
    to
        A folder, which must be absent or empty; or user/name on the Hugging Face hub, if there is no folder user
        (hf-hub:user/name in any case). The token is that of `hf auth login`, or HF_TOKEN.
    onnx
        The network as an ONNX file too, as `atnet export` writes it.
    web
        A page that answers in the browser too, as `atnet web` writes it.
    private
        On the hub, for nobody else to see.
    licence
        Of the weights, as the hub calls it: apache-2.0, cc-by-4.0, ...; unknown if not given.
    data
        A folder of class folders to check --onnx and --web on; the run's validation images if not given.
    model
        The architecture of a --weights file that says nothing of itself: resnet18, for example.
    """
    from atnet.export.publish import publish as run

    done = run(weights, to=to, onnx=onnx, web=web, private=private, licence=licence, data=data, model=model)
    console = Console(highlight=False)
    console.print(
        f"Written: {done.where} ({len(done.files)} files, {sum(done.files.values()) / 1e6:.1f} MB; README.md is the "
        f"model card)\n"
        f"Next: atnet predict IMAGE --weights {quoted(done.address)}",
        markup=False,
        soft_wrap=True,
    )

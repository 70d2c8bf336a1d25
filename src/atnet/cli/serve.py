"""`atnet serve`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.config import Whole
from atnet.progress import counted
from atnet.serve.app import Limits

if TYPE_CHECKING:
    from atnet.weights.info import WeightsInfo


def serve(
    *,
    weights: Path | None = None,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    token: Annotated[str | None, Parameter(env_var="ATNET_TOKEN")] = None,
    proxy: tuple[str, ...] = (),
    limits: Annotated[Limits | None, Parameter(name="*")] = None,
) -> None:
    """Answer what images show over HTTP: POST an image's bytes to /predict.

    Parameters
    ----------
    weights
        An ONNX file of `atnet export`; xxxs.imagenette, a network of 385 classes that comes with AT-Net, if not given
        and there is no run.
    host
        The address to listen at; any but this machine's own needs a token.
    port
        The port to listen at; 0 takes a free one.
    token
        What clients have to give, as "Authorization: Bearer TOKEN"; other users of this machine can read an option, so
        better set ATNET_TOKEN.
    proxy
        The address or network (10.0.0.0/8) of a proxy before the server, whose X-Forwarded-For says who the client is:
        it takes as many connections as there are, and its clients have their shares of the queue.
    limits
        How much is done at once, and what is refused.
    """
    from atnet.serve.serve import file_to_serve
    from atnet.serve.serve import serve as run

    path = file_to_serve(weights)
    console = Console(highlight=False)

    def tell(address: str, info: "WeightsInfo", limits: Limits) -> None:
        header = "" if token is None else '-H "Authorization: Bearer $ATNET_TOKEN" '
        console.print(
            f"Serving {path}: {info.model}, {counted(len(info.classes), 'class')}, at {address}\n"
            f"{counted(limits.decoders, 'decoding process')}, batches of up to {limits.batch:,}, "
            f"a queue of {limits.queue:,}, {limits.connections:,} connections, {limits.per_address:,} an address\n"
            f"Next: curl {header}--data-binary @photo.jpg {address}/predict\n"
            "Stop: Ctrl-C or SIGTERM; what has been asked by then is answered",
            markup=False,
            soft_wrap=True,
        )
        console.file.flush()

    answered = run(path, host=host, port=port, token=token, limits=limits, proxies=proxy, ready=tell)
    console.print(f"Stopped: {answered:,} images answered", markup=False, soft_wrap=True)

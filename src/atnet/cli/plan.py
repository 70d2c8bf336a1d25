"""`atnet plan`"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from atnet.config import Config, Options
from atnet.files import quoted


def plan(
    recipe: Path | None = None,
    /,
    *,
    config: Options = None,
    devices: int = 1,
    images_per_second: float | None = None,
    teraflops: float | None = None,
    utilisation: float = 0.1,
    gigabytes_per_second: float = 10.0,
    images: Annotated[int | None, Parameter(alias="--pictures")] = None,
) -> None:
    """Say what a training will take on several devices: steps, hours, memory, disk.

    Parameters
    ----------
    recipe
        A YAML file with any of the training options; options given here go before it.
    devices
        How many GPUs, or CPU processes.
    images_per_second
        What one device trains; measured here, on this machine's, if not given.
    teraflops
        In place of it, what one device computes at its best, 312 an A100 in bf16: counted operations, three forward
        passes an image, then tell the speed.
    utilisation
        With teraflops, the share of them that a training reaches.
    gigabytes_per_second
        Of each device's connection to the others, in each direction.
    images
        How many there are to train on, where they are not at hand; 1,281,167 in ImageNet-1k.
    """
    from atnet.data.sources import open_configured
    from atnet.errors import ConfigError
    from atnet.progress import counted, duration
    from atnet.training.plan import counted_speed, forecast_config, plan_run, settle

    config, counts = config or Config(), (0, 0)
    given = {"devices": devices, "images-per-second": images_per_second, "teraflops": teraflops}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value}: use a number above 0")
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation {utilisation}: use a share above 0, up to 1")
    if teraflops is not None:
        if images_per_second is not None:
            raise ConfigError("--images-per-second and --teraflops say the same: give one of them")
        images_per_second = counted_speed(config, teraflops=teraflops, utilisation=utilisation)
    if images_per_second is None:
        measured = forecast_config(settle(config))
        config, images_per_second = measured.config, measured.config.batch / measured.step
        counts = measured.train_images, measured.val_images
    elif not config.batch:
        raise ConfigError("--batch auto is found by measuring: give --batch N, or leave --images-per-second out")
    elif images is None and config.data.source:
        train, val = open_configured(config.data)
        counts = len(train), len(val)
    elif images is None:
        raise ConfigError("how many images? give --data FOLDER, or --images N")
    if images is not None:
        counts = images, images // 25
    found = plan_run(
        config, images=counts, devices=devices, images_per_second=images_per_second,
        gigabytes_per_second=gigabytes_per_second,
    )  # fmt: skip
    hidden = "hidden behind the backward pass" if not found.lost else f"{1000 * found.lost:.0f} ms of it not hidden"
    lines = [
        f"{config.model.removeprefix('atnet_')} at {config.data.size} px, {config.epochs} epochs of "
        f"{counts[0]:,} images, batch {config.batch}, on {devices} x {images_per_second:,.0f} images/s",
        f"time    {duration(found.seconds)}: {found.steps:,} steps of {1000 * found.step:,.0f} ms, "
        f"{counted(config.evaluations, 'evaluation')} of {duration(found.evaluation)}",
        f"talk    {1000 * found.communication:.1f} ms a step at {gigabytes_per_second:g} GB/s, {hidden}: "
        f"efficiency {found.efficiency:.2f}",
        f"memory  {found.memory / 1000:.1f} GB a device, in fp32",
        f"disk    {found.disk:,.0f} MB for the run",
    ]
    console = Console(highlight=False)
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    launch = f"torchrun --nproc-per-node {devices} -m atnet train" if devices > 1 else "atnet train"
    console.print(
        f"Nothing was written. Next: {launch} {quoted(recipe) if recipe else ''}".rstrip(), markup=False, soft_wrap=True
    )

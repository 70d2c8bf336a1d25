"""`atnet env`"""


def env() -> None:
    """Tell what AT-Net runs on, in Markdown: for the report of a bug."""
    from atnet.device import pick_device
    from atnet.run.record import environment
    from atnet.version import __version__

    found = {"atnet": __version__} | environment() | {"device": str(pick_device("auto"))}
    print("| | |\n|---|---|")
    for name, value in found.items():
        if name not in ("command", "started"):
            print(f"| {name} | {value} |")

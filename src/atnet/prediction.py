"""Named answers for pictures."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atnet.data.decode import decode
from atnet.device import pick_device
from atnet.model.load import load
from atnet.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of a picture, likeliest first.

    top: (class, name, probability 0 to 1).  milliseconds: decoding, preprocessing and the network.
    """

    picture: str
    top: tuple[tuple[str, str, float], ...]
    milliseconds: float

    @property
    def name(self) -> str:
        """The likeliest class's name."""
        return self.top[0][1]


def predict(
    pictures: str | Path | Sequence[str | Path],
    weights: str | Path = "runs/last",
    *,
    top: int = 5,
    device: str = "auto",
) -> list[Prediction]:
    """What each picture shows.

    weights: a run, a folder or a safetensors file.
    Raises DataError naming a picture that cannot be read, WeightsError on unusable weights.
    """
    chosen = pick_device(device)
    model, info = load(weights, str(chosen))
    paths = [pictures] if isinstance(pictures, str | Path) else list(pictures)
    answers = []
    with torch.inference_mode(), progress_bar("Predicting", len(paths)) as advance:
        for path in paths:
            began = time.perf_counter()
            image = torch.from_numpy(info.preprocess(decode(path)))[None].to(chosen)
            likely = model(image).float().softmax(1)[0].cpu().topk(min(top, len(info.classes)))
            answers.append(
                Prediction(
                    picture=str(path),
                    top=tuple(
                        (info.classes[i], info.class_names[i], p)
                        for i, p in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
                    ),
                    milliseconds=1000 * (time.perf_counter() - began),
                )
            )
            advance(1)
    return answers

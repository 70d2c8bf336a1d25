"""What the head reads of each image, as a vector: to keep, to find what is alike, to lay out on a plane."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atnet.data.classes import display_names
from atnet.data.decode import decode
from atnet.data.loader import NO_LABEL, BadSample, batches_of, eval_loader
from atnet.data.samples import Samples
from atnet.data.sources import open_any
from atnet.device import pick_device
from atnet.errors import ConfigError, DataError
from atnet.files import writing_whole
from atnet.inference.prediction import weights_meant
from atnet.models.load import asked_size, load_any
from atnet.progress import progress_bar
from atnet.weights.info import WeightsInfo

SEED = 0
PERPLEXITY = 30


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An image, its class's name ("" without one), and how alike it is: the cosine of the vectors, -1 to 1."""

    image: str
    name: str
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A vector of each image of a source that can be read.

    parts: the images by part of the source, under "" where it has none.
    vectors: float32 (N, dim), of the parts one after the other: what the network's head reads.
    neighbours: the images most like the one asked for, the most alike first.
    bad: images that cannot be read, and why.
    """

    parts: dict[str, Samples]
    vectors: NDArray[np.float32]
    neighbours: tuple[Neighbour, ...]
    bad: tuple[BadSample, ...]
    info: WeightsInfo

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Of each image: where it is (a path, or what stands for one in an archive), part, class, the class's name.

        The last three are "" where there is none.
        """
        for part, samples in self.parts.items():
            names = display_names(samples.classes)
            for i, label in enumerate(samples.labels.tolist()):
                yield samples.locate(i), part, samples.classes[label], names[label]

    def write(self, path: Path) -> None:
        """Writes a Parquet file with the columns path, part, class, name and vector.

        part, class and name are null where there is none. What network it was, the file's metadata say.
        Raises ConfigError if the file cannot be written.
        """
        import pyarrow
        import pyarrow.parquet

        texts = [pyarrow.array([_text(cell) for cell in column], pyarrow.string())
                 for column in zip(*self.rows(), strict=True)]  # fmt: skip
        vectors = pyarrow.FixedSizeListArray.from_arrays(self.vectors.reshape(-1), self.vectors.shape[1])
        table = pyarrow.table(dict(zip(("path", "part", "class", "name", "vector"), [*texts, vectors], strict=True)))
        try:
            with writing_whole(path) as file:
                pyarrow.parquet.write_table(table.replace_schema_metadata(self.info.to_metadata()), file)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def embed(
    source: str | Path,
    weights: str | Path | None = None,
    *,
    like: str | Path | None = None,
    top: int = 10,
    size: int | None = None,
    batch: int = 64,
    workers: int = 2,
    device: str = "auto",
    model: str = "",
) -> Embedding:
    """The vector of each image of a source, and which are most like another image.

    source: a folder of images, with class folders or without, or what else training takes; all parts of it.
    weights, model: as for `atnet.load`, also of a network without a classifier; None: see `weights_meant`.
    like: an image whose `top` nearest ones are wanted.
    size: side of the input in pixels, that of the training if None.
    Raises DataError if no image of the source can be read or the one asked for cannot, WeightsError on unusable
    weights, ConfigError on an option that does not suit them.
    """
    if top < 1:
        raise ConfigError(f"top={top} must be 1 or more")
    chosen = pick_device(device)
    network, info = load_any(weights_meant(weights, model), str(chosen), size=asked_size(size))
    network = network.to(memory_format=torch.channels_last)
    asked = None  # before all the others, for it may not be readable
    if like is not None:
        asked = _vectors(network, torch.from_numpy(info.preprocess(decode(like)))[None].to(chosen))[0]
    parts = open_any(str(source))
    found: list[NDArray[np.float32]] = []
    bad: list[BadSample] = []
    with progress_bar("Embedding", sum(map(len, parts.values()))) as advance:
        for part, samples in parts.items():
            missing = len(bad)
            for images, labels, holes in batches_of(eval_loader(samples, info.preprocess, batch, workers)):
                advance(len(labels))
                bad += holes
                images = images[labels != NO_LABEL]
                if len(images):
                    found.append(_vectors(network, images.to(chosen, memory_format=torch.channels_last)))
            gone = {hole.image for hole in bad[missing:]}
            if gone:
                parts[part] = samples.only([i for i, name in enumerate(samples.ids) if name not in gone])
    if not found:
        raise DataError(f"{source}: none of its {len(bad):,} images can be read; the first: {bad[0].reason}")
    made = Embedding(parts=parts, vectors=np.concatenate(found), neighbours=(), bad=tuple(bad), info=info)
    return made if asked is None else replace(made, neighbours=_nearest(made, asked, top))


def on_plane(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A place on a plane for each vector, (N, 2), those of like vectors near each other; the same each time.

    t-SNE of the vectors' directions, begun at their principal components; of fewer than four only these.
    Source: van der Maaten & Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.manifold import TSNE

    directions = _directions(vectors)
    centred = directions - directions.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2), np.float32)
    places[:, : len(axes)] = centred @ axes[:2].T
    spread = places[:, 0].std()
    if len(vectors) < 4 or spread < 1e-6:  # too few, or all alike
        return places
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=1e-4 / spread * places, random_state=SEED)
    return np.asarray(tsne.fit_transform(directions), np.float32)


def _vectors(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """What the head reads of normalised images, (N, dim)."""
    with torch.inference_mode():
        vectors = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    found: NDArray[np.float32] = vectors.float().cpu().numpy()
    return found


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length 1; one of length 0 stays 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return directions


def _nearest(among: Embedding, asked: NDArray[np.float32], top: int) -> tuple[Neighbour, ...]:
    similar = _directions(among.vectors) @ _directions(asked)
    order = np.argsort(-similar, kind="stable")[:top]
    rows = list(among.rows())
    return tuple(Neighbour(image=rows[i][0], name=rows[i][3], similarity=float(similar[i])) for i in order.tolist())


def _text(cell: str) -> str | None:
    """As Parquet takes it: bytes of a path that are no UTF-8 are escaped, and what there is not is null."""
    return cell.encode("utf-8", "backslashreplace").decode() or None

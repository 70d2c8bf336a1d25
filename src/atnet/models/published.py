"""The author's layouts, as published: ConvMix blocks, TransMix layers, patch. Widths meet the published parameters."""

from atnet.models.layout import Size


def _published(*, conv_mix: int, trans_mix: int, patch: int, dim: int, heads: int) -> Size:
    """A patch convolution, ConvMixer's blocks and an encoder of one width and one stride; the class token decides."""
    return Size(
        depths=(0, conv_mix, 0), dims=(dim, dim, dim), strides=(patch, 1, 1), attention_depths=(trans_mix, 0),
        kernel=7, heads=heads, convmixer=True, global_pool="token",
    )  # fmt: skip


PUBLISHED = {
    "seed_xxxs": _published(conv_mix=5, trans_mix=7, patch=8, dim=130, heads=5),
    "seed_xxs": _published(conv_mix=6, trans_mix=4, patch=9, dim=220, heads=5),
    "seed_s": _published(conv_mix=10, trans_mix=11, patch=12, dim=416, heads=13),
    "author_2023": _published(conv_mix=5, trans_mix=5, patch=8, dim=512, heads=8),
}

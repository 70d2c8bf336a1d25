import pytest
import torch

from atnet.bench import blocks
from atnet.bench.roof import measure_roof
from atnet.cli import main
from atnet.models.cost import cost_of
from atnet.models.sizes import SIZES


@pytest.fixture(scope="module")
def timed():
    """The blocks of XXXS and the network itself, at 64 px."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "FAMILY", {"xxxs": SIZES["xxxs"]})
        return blocks.bench_blocks(size=64, rounds=2, seconds=0.01)


@pytest.mark.slow
def test_blocks_add_up_to_the_network(timed):
    found, [costed] = timed
    times = {
        ("stem", 4, 48): 1,
        ("downsampling", 8, 96): 1,
        ("ConvMix", 4, 48): 2,
        ("ConvMix", 8, 96): 6,
        ("downsampling", 16, 192): 1,
        ("ConvMix", 16, 192): 11,
        ("class attention", 16, 192): 2,
    }
    parts = [(block, times.get((block.name, block.stride, block.width), 0)) for block in found]
    assert sum(bool(count) for _, count in parts) == len(times)
    total = sum(count * block.macs for block, count in parts)
    assert total == cost_of("atnet_xxxs", 64).macs - 192 * 1000, "all but the classifier"
    assert all(block.median > 0 and block.compute > 0 for block in found)
    assert costed.blocks == pytest.approx(sum(count * block.median for block, count in parts))
    assert costed.size == "xxxs"
    assert costed.whole > 0


@pytest.mark.slow
def test_the_command_prints_the_blocks_and_puts_them_into_a_document(tmp_path, capsys, monkeypatch, timed):
    monkeypatch.setattr(blocks, "bench_blocks", lambda **_: timed)
    document = tmp_path / "speed.md"
    document.write_text("<!-- blocks: begin, made by `make bench` -->\n<!-- blocks: end -->\n")
    main(["blocks", "--document", str(document)])
    said = capsys.readouterr().out
    assert "class attention" in said
    assert "Written:" in said
    text = document.read_text()
    assert "| ConvMix | 16 | 96 |" in text
    assert "| xxxs |" in text
    assert "![blocks](speed-blocks.png)" in text
    assert (tmp_path / "speed-blocks.png").stat().st_size > 5_000
    main(["blocks"])
    assert "Next: " in capsys.readouterr().out


def test_the_roof_is_measured_in_the_threads_asked_for_and_leaves_torchs_alone():
    before = torch.get_num_threads()
    roof = measure_roof(1)
    assert torch.get_num_threads() == before
    assert roof.flops > 1e9 < roof.bytes
    assert str(roof).endswith("GB/s in 1 thread")

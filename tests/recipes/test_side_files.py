"""Values that name units, in config.json and beside it: the wide model uses the same heads and blocks."""

import json

import pytest
import torch
import transformers

from helpers import save_model
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

GENERATION = "generation_config.json"


@pytest.fixture
def whisper(tmp_path):
    source = save_model(tmp_path / "whisper", "Whisper-tied")
    settings = {"alignment_heads": [[0, 1], [1, 0], [1, 1]], "suppress_tokens": [1, 2]}
    (source / GENERATION).write_text(json.dumps(settings))
    return source


def alignment(folder):
    """Return the mean attention of the heads that word timestamps follow."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    config = model.config
    sounds = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions, dtype=torch.float64)
    tokens = torch.arange(3, 9)[None]
    attentions = model(sounds, decoder_input_ids=tokens, output_attentions=True).cross_attentions
    heads = json.loads((folder / GENERATION).read_text())["alignment_heads"]
    return torch.stack([attentions[block][:, head] for block, head in heads]).mean(0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"factor": 2}, [[0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]]),
        ({"factor": 2, "method": "hyperclone"}, [[0, 1], [0, 3], [1, 0], [1, 2], [1, 1], [1, 3]]),
        ({"axes": {"decoder_layers": 2}}, [[0, 1], [2, 0], [2, 1]]),
        ({"axes": {"ffn": 2, "dffn": 3}}, [[0, 1], [1, 0], [1, 1]]),
    ],
    ids=["heads", "tiled", "blocks", "neither"],
)
def test_word_timestamps_follow_the_same_heads(options, expected, whisper, tmp_path):
    wide = widen(whisper, tmp_path / "wide", dtype="float64", **options).output
    assert json.loads((wide / GENERATION).read_text()) == {"alignment_heads": expected, "suppress_tokens": [1, 2]}
    torch.manual_seed(0)
    narrow = alignment(whisper)
    torch.manual_seed(0)
    torch.testing.assert_close(alignment(wide), narrow, rtol=0, atol=1e-12)


def test_a_head_that_does_not_exist_is_refused(whisper):
    (whisper / GENERATION).write_text(json.dumps({"alignment_heads": [[0, 9]]}))
    with pytest.raises(
        PlanError, match=r"`alignment_heads` in generation_config\.json has the number 9, but `dh` has 2"
    ):
        plan_widening(whisper, factor=2)


def test_verify_compares_rewritten_files(whisper, tmp_path):
    wide = widen(whisper, tmp_path / "wide", factor=2, verify=False).output
    assert verify(wide, only=("files",)).agrees
    (wide / GENERATION).write_text((whisper / GENERATION).read_text())
    assert any(GENERATION in difference for difference in verify(wide, only=("files",)).files.differences)


@pytest.mark.parametrize(
    ("case", "stack", "key", "before", "after"),
    [
        ("Llava-clip", "vision.layers", "vision_feature_layer", -2, -3),
        ("Llava-clip", "vision.layers", "vision_feature_layer", [-1, 1], [-1, 2]),
        ("Dinov2-classifier", "layers", "out_features", ["stage1", "stage2"], ["stage2", "stage4"]),
        ("Dinov2-classifier", "layers", "stage_names", None, ["stem", "stage1", "stage2", "stage3", "stage4"]),
    ],
)
def test_hidden_states_keep_their_values(case, stack, key, before, after, tmp_path):
    source = save_model(tmp_path / "narrow", case)
    config = json.loads((source / "config.json").read_text())
    if before is not None:
        (source / "config.json").write_text(json.dumps({**config, key: before}))
    assert plan_widening(source, axes={stack: 2}).config[key] == after

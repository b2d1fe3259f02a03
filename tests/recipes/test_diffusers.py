"""The recipes for models of diffusers, on random models of its own classes in float64."""

import shutil

import pytest
import torch
from diffusion import DIFFUSION, save_diffusion
from safetensors.torch import load_file, save_file

from helpers import change_config
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError, PlanError, RecipeError
from mupscale_cli.plan import Size
from mupscale_cli.plan.copies import Axis
from mupscale_cli.tasks.check import check_model
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import everything_in

pytest.importorskip("diffusers")
WIDE = [case for case in DIFFUSION if case not in ("dit", "pixart")]
FAST = ("sdxl", "sd1-vae", "flux-dev")


@pytest.fixture
def narrow(tmp_path):
    return lambda case, **options: save_diffusion(tmp_path / case, case, **options)


def verified(source, output, factor=None, **options):
    found = widen(source, output, factor, **options).verification
    assert found is not None
    assert found.agrees, found
    assert found.num_modules > 3
    assert found.max_rel < 1e-13
    return found


@pytest.mark.parametrize(
    "case", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WIDE]
)
def test_a_bare_factor_keeps_the_function(case, narrow, tmp_path):
    verified(narrow(case), tmp_path / "wide", 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE)
def test_every_axis(case, narrow):
    checked = check_model(narrow(case))
    assert len(checked.trials) > 4
    assert checked.passed, (checked.mistakes, [trial for trial in checked.trials if trial.problem])
    assert 0 < checked.worst < 1e-13


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("dit", {"layers": 5}),
        pytest.param("pixart", {"layers": 5}, marks=pytest.mark.slow),
        pytest.param("flux-dev", {"layers": 4, "single_layers": 3}, marks=pytest.mark.slow),
    ],
)
def test_blocks_are_added(case, sizes, narrow, tmp_path):
    axes = {name: Size(size) for name, size in sizes.items()}
    verified(narrow(case), tmp_path / "deep", axes=axes, layers_at="end")


def test_a_width_that_the_class_computes_positions_from_is_fixed(narrow):
    with pytest.raises(PlanError, match="cannot become wider: the class adds sines and cosines of positions") as error:
        plan_widening(narrow("dit"), factor=2)
    assert error.value.hint == "add blocks, for instance with `--layers N`"


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_sinusoids_keep_their_frequencies(shift):
    """Old units are a third of the new ones, and the layer that reads them ignores the others."""
    from diffusers.models.embeddings import get_timestep_embedding

    times = torch.tensor([3.0, 800.0])
    axis = Axis("s", 8, fresh=16, sinusoidal="halves")
    with everything_in(torch.float64):
        narrow = get_timestep_embedding(times, 8, downscale_freq_shift=shift)
        wide = get_timestep_embedding(times, 24, downscale_freq_shift=3 * shift)
    positions = [axis.copy_map().all_sources.index(unit) for unit in range(8)]
    torch.testing.assert_close(wide[:, positions], narrow, rtol=0, atol=1e-12)


def test_a_wider_unet_changes_only_the_keys_of_its_width(narrow):
    source = narrow("sd1-guided")
    changes = {change.key: (change.before, change.after) for change in plan_widening(source, factor=3).config_changes}
    assert changes == {
        "block_out_channels": ([12, 24], [36, 72]),
        "attention_head_dim": (3, 9),
        "time_embedding_dim": (20, 60),
        "freq_shift": (1, 3),
    }


def test_blocks_that_read_the_text_in_different_ways_are_refused(narrow):
    source = narrow("sd1")
    change_config(source, only_cross_attention=[True, False])
    with pytest.raises(RecipeError, match=r"no alternative applies to .*attn1\.to_k"):
        plan_widening(source, factor=2)


def test_names_of_old_checkpoints(narrow, tmp_path):
    """Attention had other names before diffusers 0.16, which it still loads."""
    source = narrow("sd1-vae")
    file = source / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    save_file(state, file, metadata={"format": "pt"})
    verified(source, tmp_path / "wide", 2)


def test_shards_and_variants_have_the_names_that_diffusers_reads(narrow, tmp_path):
    source = narrow("flux-schnell", max_shard_size="50kB", variant="fp16")
    assert (source / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    verified(source, tmp_path / "wide", 2, max_shard_size=400_000)
    assert (tmp_path / "wide" / "diffusion_pytorch_model.safetensors.index.json").is_file()


def test_a_wide_component_replaces_the_narrow_one_in_a_pipeline(narrow, tmp_path):
    """A component has its own folder; the images of the pipeline stay the same, within the rounding of float32."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(narrow("ddpm", dtype=torch.float32))
    pipeline = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=5))
    pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(CheckpointError, match="is a pipeline of diffusers") as error:
        open_checkpoint(tmp_path / "pipeline")
    assert error.value.excerpt == f"  unet  mupscale widen {tmp_path / 'pipeline'}/unet --factor 2"
    wide = widen(tmp_path / "pipeline" / "unet", tmp_path / "wide", 2, verify=False).output
    shutil.rmtree(tmp_path / "pipeline" / "unet")
    shutil.copytree(wide, tmp_path / "pipeline" / "unet")
    images = []
    for each in (pipeline, DDPMPipeline.from_pretrained(tmp_path / "pipeline")):
        each.set_progress_bar_config(disable=True)
        seeded = torch.Generator().manual_seed(0)
        images.append(each(generator=seeded, num_inference_steps=5, output_type="np").images)
    assert images[0].std() > 0.1
    assert abs(images[1] - images[0]).max() < 1e-5


@pytest.mark.slow
def test_flux_trains_as_before(narrow, tmp_path):
    source = narrow("flux-dev")
    wide = widen(source, tmp_path / "wide", 2).output
    training = verify(wide, source, steps=5).training
    assert training.agrees, training

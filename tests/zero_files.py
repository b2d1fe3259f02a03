"""Write the files of DeepSpeed's ZeRO as its processes do, without DeepSpeed."""

import torch

from mupscale_cli.checkpoints.containers import stand_ins

SHAPES = {"a.weight": (5, 3), "b.weight": (4, 5), "a.bias": (5,), "b.bias": (3,)}
GROUPS = (("a.weight", "b.weight"), ("a.bias", "b.bias"))
KEYS = ("fp32", "exp_avg", "exp_avg_sq")


def made(name, *arguments, **attributes):
    """Return the stand-in of one of DeepSpeed's objects."""
    instance = stand_ins._stand_ins()[f"deepspeed.{name}"](*arguments)
    if attributes:
        instance.__setstate__(attributes)
    return instance


def tensors_of(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()} for key in KEYS}


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file, pickle_module=stand_ins)


def write_partitioned(folder, stage, tensors, groups=GROUPS, processes=3, **changes):
    """Write a checkpoint as the processes of a stage do."""
    shapes = [{name: tensors["fp32"][name].shape for name in group} for group in groups]
    states = {
        "module": {n: t if stage < 3 else torch.empty(0) for n, t in tensors["fp32"].items()},
        "buffer_names": [],
        "param_shapes": shapes,
        "dp_world_size": processes,
        "global_steps": 7,
        "lr_scheduler": {"last_epoch": 7},
        "ds_config": {"zero_optimization": {"stage": stage}},
        **changes,
    }
    adamw = torch.optim.AdamW([torch.zeros(1)], lr=1e-3, betas=(0.9, 0.95)).state_dict()["param_groups"][0]
    settings = [{**adamw, "weight_decay": decay} for decay in (0.1, 0.0)]
    param_groups = [{**each, "params": [index]} for index, each in enumerate(settings)]
    for rank in range(processes):
        flat, mappings = [], []
        for group in groups:
            parts, mapping = {}, {}
            for key in KEYS:
                if stage < 3:  # the group's tensors, end to end and padded, cut into equal parts
                    whole = torch.cat([tensors[key][name].flatten() for name in group])
                    size = -(-whole.numel() // processes)
                    parts[key] = torch.nn.functional.pad(whole, (0, size * processes - whole.numel()))[
                        rank * size : (rank + 1) * size
                    ].clone()
                    start = 0
                    for name in group:
                        low, high = max(start, rank * size), min(start + tensors[key][name].numel(), (rank + 1) * size)
                        start += tensors[key][name].numel()
                        if low < high:
                            mapping[name] = made(
                                "utils.tensor_fragment.fragment_address", numel=high - low, start=low - rank * size
                            )
                else:  # an equal part of each tensor, padded
                    pieces = []
                    for name in group:
                        whole = tensors[key][name].flatten()
                        size = -(-whole.numel() // processes)
                        padded = torch.nn.functional.pad(whole, (0, size * processes - whole.numel()))
                        pieces.append(padded[rank * size : (rank + 1) * size])
                    parts[key] = torch.cat(pieces)
            flat.append(parts)
            mappings.append(mapping)
        state = {
            index: {"step": torch.tensor(7.0), **{key: parts[key] for key in KEYS[1:]}}
            for index, parts in enumerate(flat)
        }
        inner = {"state": state, "param_groups": param_groups}
        own = {
            "loss_scaler": made("runtime.fp16.loss_scaler.LossScaler", cur_scale=1.0, dynamic=False),
            "zero_stage": made("runtime.zero.config.ZeroStageEnum", stage),
            "ds_version": "0.19.8",
        }
        masters = [parts["fp32"] for parts in flat]
        if stage < 3:
            own |= {"base_optimizer_state": inner, "single_partition_of_fp32_groups": masters}
            own |= {"param_slice_mappings": mappings}
        else:
            own |= {"optimizer_state_dict": inner, "fp32_flat_groups": masters}
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        save(folder / f"{name}_optim_states.pt", {"optimizer_state_dict": own, "ds_config": states["ds_config"]})
        if stage == 3 or rank == 0:
            save(folder / f"{name if stage == 3 else 'mp_rank_00'}_model_states.pt", states)
    return folder

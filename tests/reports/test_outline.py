"""Test the tree of a plan: equal layers are folded, and no tensor is lost."""

import pytest

from mupscale_cli.cli.output import stdout
from mupscale_cli.cli.tree import tensors_tree
from mupscale_cli.reports.outline import num_layers, outline
from mupscale_cli.tasks.planning import plan_widening


def leaves(nodes, before=""):
    for node in nodes:
        name = f"{before}{node.label}"
        if node.children:
            yield from leaves(node.children, f"{name}.")
        else:
            yield name, node


@pytest.mark.parametrize("case", ["Llama-tied", "Qwen3Moe-untied", "GPT2-tied", "Bart-tied", "Gemma3-images"])
def test_every_tensor_is_in_one_leaf_of_its_kind(case, saved):
    plan = plan_widening(saved(case), factor=2)
    tensors = [tensor for _, node in leaves(outline(plan)) for tensor in node.tensors]
    assert sorted(tensor.target.name for tensor in tensors) == sorted(tensor.target.name for tensor in plan.tensors)
    for _, node in leaves(outline(plan)):
        assert len({(t.rule, t.layout, t.source.shape, t.target.shape, t.parts) for t in node.tensors}) == 1
    assert sum(node.num_bytes[1] for node in outline(plan)) == plan.num_bytes


def test_equal_layers_are_folded(saved):
    nodes = dict(leaves(outline(plan_widening(saved("Llama-tied"), factor=2))))
    assert len(nodes["model.layers.0-1.self_attn.q_proj.weight"].tensors) == 2
    assert "model.layers.0-1.mlp.down_proj.bias" in nodes
    assert "model.embed_tokens.weight" in nodes


def test_different_layers_are_not_folded(saved):
    names = [name for name, _ in leaves(outline(plan_widening(saved("Qwen3Moe-untied"), factor=2)))]
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert "model.layers.1.mlp.experts.0-3.gate_proj.weight" in names


def test_label_shows_added_experts(saved):
    plan = plan_widening(saved("Mixtral-untied"), axes={"experts": 2})
    names = [name for name, _ in leaves(outline(plan))]
    assert "model.layers.0-1.block_sparse_moe.experts.0-3 -> 0-7.w1.weight" in names


def test_num_bytes_counts_all_layers_and_each_source_once(saved):
    plan = plan_widening(saved("Mixtral-untied"), axes={"experts": 2})
    node = dict(leaves(outline(plan)))["model.layers.0-1.block_sparse_moe.experts.0-3 -> 0-7.w1.weight"]
    before, after = node.num_bytes
    assert (len(node.tensors), after) == (16, 2 * before)


def test_num_layers(saved):
    for plan in (
        plan_widening(saved("Llama-tied"), factor=2),
        plan_widening(saved("Mixtral-untied"), axes={"experts": 2}),
    ):
        assert num_layers(tensor.target.name for tensor in plan.tensors) == 2  # experts do not count


def test_tree_shows_shapes_layouts_and_scales(saved):
    plan = plan_widening(saved("Llama-tied"), factor=4)
    table = tensors_tree(plan, stdout())
    assert [column.header for column in table.columns] == ["tensor", "shape", "layout", "c", "m", "bytes"]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    row = next(row for row in rows if "32x48" in row[1])
    assert row[1:5] == ("32x48 -> 128x192", "(kv g d), /embed | #d^0.5", "1/4", "16")


def test_each_widened_axis_has_its_own_color(saved):
    plan = plan_widening(saved("Llama-tied"), factor=4)
    table = tensors_tree(plan, stdout())
    shape, layout = next(
        (shape, layout)
        for shape, layout in zip(table.columns[1].cells, table.columns[2].cells, strict=True)
        if str(layout) == "ffn, /embed"
    )
    colors = [str(span.style) for span in layout.spans if str(span.style)]
    assert len(set(colors)) == 2
    assert [str(span.style) for span in shape.spans if str(span.style) in colors] == [*colors, *colors]

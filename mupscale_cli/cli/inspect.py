"""`mupscale inspect`."""

from __future__ import annotations

from mupscale_cli.cli import explain, options, output, render, tree
from mupscale_cli.record.reading import check_record
from mupscale_cli.tasks import planning
from mupscale_cli.tasks.options import parse_settings
from mupscale_cli.tasks.source import find_source


def inspect(
    checkpoint: options.Checkpoint,
    recipe: options.RecipeName = None,
    settings: options.Settings = None,
    tensor: explain.TensorName = None,
    as_json: options.Json = False,
) -> None:
    """Show what is in a checkpoint: its recipe, axes and tensors, and how it was made."""
    source = find_source(checkpoint, headers_only=True, recipe=recipe, settings=parse_settings(settings))
    output.note_found(source.found)
    header = source.checkpoint
    record = None if header.record is None else check_record(header.record, header.path)
    plan = planning.identity_plan(header, recipe)
    if tensor is not None:
        factors = None if record is None else {name: axis["factor"] for name, axis in record["axes"].items()}
        explain.show_tensor(plan, tensor, factors, as_json=as_json)
        return
    if as_json:
        document = render.plan_document(plan, "")
        path = str(source.hub or header.path)
        output.print_document("inspect", {**document, "output": None, "path": path, "record": record})
        return
    console = output.stdout()
    console.print(render.axes_table(plan))
    console.print()
    console.print(tree.tensors_tree(plan, console))
    console.print(
        f"\nrecipe {plan.recipe.name}, {output.count_text(plan.num_parameters[0])} parameters, "
        f"{len(header.tensors)} tensors, "
        f"{output.bytes_text(header.num_bytes)} in {output.counted(len(header.files), 'file')}",
        markup=False,
    )
    if record is not None:
        console.print(render.record_text(record), markup=False)

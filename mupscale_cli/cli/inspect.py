"""`mupscale inspect`."""

from __future__ import annotations

from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.cli import explain, options, output, render, tree
from mupscale_cli.errors import MupscaleError, OtherFormatError, RecipeError
from mupscale_cli.record.reading import check_record
from mupscale_cli.tasks import planning
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import find_source


@options.with_reading
def inspect(
    checkpoint: options.Checkpoint,
    recipe: options.RecipeName = None,
    infer: options.Infer = True,
    reading: Reading = AS_STORED,
    tensor: explain.TensorName = None,
    as_json: options.Json = False,
) -> None:
    """Show what is in a checkpoint: its recipe, axes and tensors, and how it was made; or what else a path is."""
    try:
        source = find_source(checkpoint, reading, recipe=recipe, headers_only=True)
    except OtherFormatError as error:
        return _describe(checkpoint, error, as_json=as_json)
    output.note_found(source.found, source.assumed)
    header = source.checkpoint
    record = None if header.record is None else check_record(header.record, header.path)
    try:
        chosen = planning.choose_recipe(header, recipe, infer=infer)
    except RecipeError as error:
        if recipe is not None or tensor is not None:
            raise
        return _describe(checkpoint, error, header, as_json=as_json)
    plan = planning.identity_plan(header, chosen)
    if tensor is not None:
        factors = None if record is None else {name: axis["factor"] for name, axis in record["axes"].items()}
        explain.show_tensor(plan, tensor, factors, as_json=as_json)
        return None
    if as_json:
        document = render.plan_document(plan, "")
        path = str(source.hub or header.path)
        output.print_document("inspect", {**document, "output": None, "path": path, "record": record})
        return None
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
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if record is not None:
        console.print(render.record_text(record), markup=False)
    return None


def _describe(path: str, error: MupscaleError, header: Checkpoint | None = None, *, as_json: bool) -> None:
    """Print what a path is that cannot be widened.

    Args:
        path: what the user named.
        error: says what it is, and what to do.
        header: its weights; None if it holds none in safetensors.
        as_json: print a document.
    """
    if as_json:
        tensors = None if header is None else list(header.tensors)
        document = {"path": path, "about": error.message, "hint": error.hint, "tensors": tensors}
        output.print_document("description", document)
        return
    console = output.stdout()
    for spec in header.specs if header else ():
        console.print(f"{spec.name}  {'x'.join(map(str, spec.shape))}  {spec.dtype}", markup=False, soft_wrap=True)
    console.print("\n".join(filter(None, (error.message, error.excerpt, error.hint))), markup=False, soft_wrap=True)

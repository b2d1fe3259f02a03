"""Turn the manual into a site: add the documents of the repository, and make the links lead somewhere."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
MANUAL = "mupscale_cli/cli/pages"
# Pages of the site that are not pages of the manual, by the document that each one shows.
DOCUMENTS = {
    "README.md": "index.md",
    "recipes/README.md": "models.md",
    "tests/experiments/README.md": "experiments.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}
ASSETS = {"docs/site.css": "site.css", "docs/site.js": "site.js"}
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!http|#)([^)#\s]*)(#[^)]*)?\)")
_MENTION = re.compile(r"(?<!\[)(?:(?<=[Pp]age )|(?<=pages )|(?=`mupscale help ))`(?:mupscale help )?([\w-]+)`(?!\])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents, the pictures beside them, and what the site adds of its own."""
    figures = {
        path.relative_to(ROOT).as_posix(): f"figures/{path.name}"
        for path in (ROOT / "tests/experiments/figures").iterdir()
    }
    for source, target in {**DOCUMENTS, **figures, **ASSETS}.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "names.md", content=_names()))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def _examples() -> str:
    """Return a page with the text of every example."""
    languages = {".py": "python", ".sh": "sh", ".yaml": "yaml"}
    texts = (
        f"## {file.name}\n\n```{languages[file.suffix]}\n{file.read_text(encoding='utf-8')}```\n"
        for file in sorted((ROOT / "examples").iterdir())
        if file.suffix in languages
    )
    return "# Examples\n\nScripts that run, with the model that `mupscale demo` trains.\n\n" + "\n".join(texts)


def _names() -> str:
    """Return a page with every public name; mkdocstrings fills in signatures and docstrings."""
    (public,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "mupscale_cli" / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = "".join(f"\n::: mupscale_cli.{name}\n" for name in public if not name.startswith("_"))
    return f"# Names of the Python API\n\nThe page [api](api.md) shows how to use them, as `mupscale.NAME`.\n{names}"


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Let links lead to pages of the site, and make links of the pages that the text mentions."""
    own = {target: source for source, target in DOCUMENTS.items()}.get(page.file.src_uri)
    folder = posixpath.dirname(own or f"{MANUAL}/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.partition("/")[0] == "examples":
            name = posixpath.basename(path).replace(".", "") if "/" in path else ""
            return f"[{text}](examples.md#{name})" if name else f"[{text}](examples.md)"
        on_site = DOCUMENTS.get(path, path.removeprefix(f"{MANUAL}/").removeprefix("tests/experiments/"))
        if files.get_file_from_path(on_site):
            return f"{image}[{text}]({on_site}{anchor or ''})"
        return f"{text} (`{path}` of the sources)"

    def mention(found: re.Match[str]) -> str:
        target = f"{found[1]}.md"
        return f"[{found[0]}]({target})" if files.get_file_from_path(target) else found[0]

    title = markdown.partition("\n")[0].lstrip("# ")
    page.meta.setdefault("title", title.partition(":")[0])  # short enough for the navigation
    if page.file.src_uri == "architectures.md":
        page.meta["search"] = {"boost": 2}  # who searches for a model type wants its row, not its measurements
    parts = _FENCE.split(markdown)
    parts[::2] = [_MENTION.sub(mention, _LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)

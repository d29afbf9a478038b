"""Beside MkDocs' plugins: pages from the top folder, formulas as MathML."""

import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md"}
PAGES |= {name: name.lower() for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES |= {f"examples/{n.name}": f"notebooks/{n.stem}.md" for n in NOTEBOOKS}
LINK = re.compile(r"\]\((?:docs/)?([^):]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", flags=re.DOTALL)
BLOCK = re.compile(r"\$\$(.+?)\$\$", flags=re.DOTALL)
INLINE = re.compile(r"\$([^$\n]+?)\$")


def on_files(files, config):
    """The home page is README; what it links to is where the site has it."""
    for name, page in PAGES.items():
        read = _read_notebook if name.endswith(".ipynb") else Path.read_text
        text = read(ROOT / name)
        text = LINK.sub(lambda m, page=page: f"]({_in_site(m[1], page)})", text)
        files.append(File.generated(config, page, content=text))
    return files


def _in_site(link, page):
    """Where a link of a page from the top folder leads to in the site."""
    if page.startswith("notebooks/"):  # from one to another
        return link.replace(".ipynb", ".md")
    return PAGES.get(link, link)


def _read_notebook(path):
    """A notebook with its outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="output" src="data:image/png;base64,{png}">')
            else:
                shown = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown, page, config, files):
    """LaTeX as MathML, which browsers show without a script."""
    parts = CODE.split(markdown)
    parts[::2] = [_with_formulas(text) for text in parts[::2]]
    return "".join(parts)


def _with_formulas(text):
    text = BLOCK.sub(lambda m: f"<div>{convert(m[1], display='block')}</div>", text)
    # In a span: Markdown would take a paragraph that begins with it for HTML.
    return INLINE.sub(lambda m: f"<span>{convert(m[1])}</span>", text)

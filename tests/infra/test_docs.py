"""The written pages say what the code does."""

from pathlib import Path

import yaml

from infra.spec_docs import render
from recsys.spec import loads
from recsys.spec.records import Record

ROOT = Path(__file__).parents[2]


def test_the_page_on_the_spec_is_current() -> None:
    page = (ROOT / "docs" / "spec.md").read_text()
    assert page == render(), "run: python -m infra.spec_docs > docs/spec.md"


def test_every_field_of_the_spec_is_described() -> None:
    bare = [
        f"{record.__name__}.{name}"
        for record in Record.__subclasses__()
        for name, field in record.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert not bare


def test_the_readme_shows_a_sound_spec() -> None:
    readme = (ROOT / "README.md").read_text()
    block = next(b.split("```")[0] for b in readme.split("```yaml\n")[1:] if "name: shop" in b)
    spec = loads(block)
    assert [task.name for task in spec.tasks] == ["click", "purchase"]
    later = next(b.split("```")[0] for b in readme.split("```yaml\n")[1:] if "shown_at" in b)
    tree = yaml.safe_load(block)
    tree["data"].update(yaml.safe_load(later)["data"])
    assert loads(yaml.safe_dump(tree)).data.split.kind == "time"

"""Settings: what is allowed, what a refusal says, and that nothing states a setting a second time."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from backlight.analyses.catalog import CATALOG
from backlight.errors import UserError
from backlight.settings import Settings, options, setting

ROOT = Path(__file__).parents[1]
#: Parameters of the Python functions that are no settings of the analysis: inputs, and what every run shares.
SHARED = {"model", "data", "batches", "at", "name", "resamples", "seed", "partial_results", "shard", "track"}
#: Objects that only Python can give.
OBJECTS = {"mean", "std", "held_out", "other_at", "other_name", "loss", "decayed"}


@dataclass(frozen=True)
class Some(Settings):
    """One field of each kind."""

    grid: int = setting(3, "Points.", least=3, odd=True)
    share: float = setting(0.5, "Share.", above=0, most=1)
    kind: str | None = setting(None, "Kind.", choices=("round", "square"))
    sizes: tuple[int, ...] = setting((1, 2), "Sizes.", least=1, most=5)
    quiet: bool = setting(False, "No noise.")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"grid": 4}, "grid is 4; it must be odd, at least 3"),
        ({"grid": 1}, "grid is 1; it must be odd, at least 3"),
        ({"grid": 3.0}, "grid is 3.0; it must be a whole number, odd, at least 3"),
        ({"grid": True}, "grid is True; it must be a whole number"),
        ({"grid": None}, "grid is None; it must be a whole number"),
        ({"share": 0}, "share is 0.0; it must be above 0, at most 1"),
        ({"share": "much"}, "share is 'much'; it must be a number, above 0, at most 1"),
        ({"share": float("nan")}, "share is nan; it must be above 0, at most 1"),
        ({"kind": "squar"}, "kind is 'squar'; did you mean square?; it must be round or square"),
        ({"sizes": (1, 6)}, "sizes is 6; it must be at least 1, at most 5"),
        ({"sizes": "12"}, "sizes is '12'; it must be a list of whole numbers"),
        ({"sizes": 3}, "sizes is 3; it must be a list of whole numbers"),
        ({"quiet": 1}, "quiet is 1; it must be true or false"),
    ],
)
def test_a_value_that_is_not_allowed_gets_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        Some(**values)
    assert str(refused.value).startswith(sentence)


def test_allowed_values_get_their_type() -> None:
    assert Some(grid=np.int64(5), sizes=np.arange(1, 3).tolist(), share=np.float32(0.5)).grid == 5  # type: ignore[arg-type]
    some = Some(share=1, sizes=[3, 4], kind="round")  # type: ignore[arg-type]
    assert (some.share, some.sizes, some.kind) == (1.0, (3, 4), "round")
    assert isinstance(some.share, float)


def test_a_key_that_does_not_exist_is_named_with_its_file() -> None:
    with pytest.raises(UserError, match=r"^study\.toml: \[some\]: there is no setting 'gird'; did you mean grid\?$"):
        Some.of({"gird": 3}, "study.toml: [some]")
    with pytest.raises(UserError, match=r"^study\.toml: grid is 4"):
        Some.of({"grid": 4}, "study.toml")


@pytest.mark.parametrize("name", CATALOG)
def test_the_python_function_repeats_the_settings(name: str) -> None:
    """Names, defaults and types of each function are those of the settings, none more and none less."""
    about = CATALOG[name]
    parameters = inspect.signature(about.function).parameters
    own = {option.name: option for option in about.own_options()}
    assert set(parameters) - SHARED - OBJECTS == set(own)
    assert ("at" in parameters) == about.reads_stream
    assert ("shard" in parameters) == about.shards
    for setting_name, option in own.items():
        parameter = parameters[setting_name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == (None if option.default is MISSING else option.default), setting_name
    hints = get_type_hints(about.function, vars(about.module) | {"Any": Any} | _names(about.function))
    for setting_name, option in own.items():
        if not option.about["loads"]:
            assert _comparable(hints[setting_name]) == _comparable(option.type), setting_name


def _names(function: Any) -> dict[str, Any]:
    """What the annotations of a function name and its module imports for type checkers alone."""
    import ast

    source = ast.parse(Path(inspect.getsourcefile(function) or "").read_text())
    found: dict[str, Any] = {}
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            module = importlib.import_module(node.module or "")
            found |= {alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def _comparable(kind: Any) -> Any:
    """A type, any sequence as a tuple, and a path as text."""
    if get_origin(kind) in (tuple, Sequence):
        return tuple, get_args(kind)[0]
    if not get_args(kind) or str(kind).startswith("typing.Literal"):
        return str if kind is Path else kind
    return frozenset(_comparable(each) for each in get_args(kind))


def test_every_setting_has_help() -> None:
    for about in CATALOG.values():
        for option in about.options():
            assert option.about["help"].endswith("."), (about.name, option.name)
            assert option.about["help"][0].isupper() or (option.about["help"][0].islower() and option.about["choices"])
            if option.about["choices"] and option.default is not None:
                assert option.default in option.about["choices"]


def test_a_settings_class_accepts_its_own_defaults() -> None:
    for about in CATALOG.values():
        checked = about.checked({})
        assert set(checked) == {option.name for option in about.options()}


def test_the_tables_in_the_docs_are_those_of_the_settings() -> None:
    """``make tables`` writes them."""
    path = ROOT / "tools" / "write_tables.py"
    spec = importlib.util.spec_from_file_location("write_tables", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name, about in CATALOG.items():
        page = ROOT / "docs" / "analyses" / f"{name}.md"
        assert "<!-- settings -->" in page.read_text() or not about.options(), page
    for page in tool.PAGES:
        assert tool.written(page) == page.read_text(encoding="utf-8"), f"{page.name}: run make tables"


def test_own_options_are_fields_of_one_class() -> None:
    assert [option.name for option in options(Some)] == ["grid", "share", "kind", "sizes", "quiet"]

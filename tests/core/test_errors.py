from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from byzer_ft.errors import ByzerError, JobError, ScriptErrors, Source, SqlError, did_you_mean, listing


def test_an_error_names_file_line_and_column_and_underlines_the_text() -> None:
    source = Source("select 1 as a as t;\nlod json.`x` as t;\n", "my.sql")
    error = SqlError("unknown statement `lod`", hint="did you mean `load`?", span=source.span(20, 23))
    assert error.render().split("\n") == [
        "my.sql:2:1: error: unknown statement `lod`",
        "    lod json.`x` as t;",
        "    ^^^",
        "  hint: did you mean `load`?",
    ]


def test_carets_stand_below_wide_characters() -> None:
    source = Source("select '推荐' as x y;")
    start = source.text.index("y")
    _, carets = source.span(start, start + 1).underlined().split("\n")
    assert carets.index("^") == 4 + len("select '") + 4 + len("' as x ")


def test_a_range_over_lines_is_underlined_on_its_first_line_only() -> None:
    source = Source("abc\ndef\nghi")
    assert source.span(1, 9).underlined() == "    abc\n     ^^"


@given(st.text(max_size=400), st.integers(0, 400), st.integers(0, 400))
def test_any_range_of_any_text_can_be_shown(text: str, a: int, b: int) -> None:
    start, end = sorted((min(a, len(text)), min(b, len(text))))
    shown = ByzerError("x", span=Source(text).span(start, end)).render()
    assert "^" in shown


def test_late_errors_keep_the_more_exact_place() -> None:
    source = Source("select nothing as t")
    exact, wide = source.span(7, 14), source.span(0, 19)
    assert SqlError("x", span=exact).at(wide).span is exact
    assert SqlError("x").at(wide).span is wide


def test_all_errors_of_a_script_are_rendered() -> None:
    source = Source("a;b;")
    errors = ScriptErrors([SqlError("first", span=source.span(0, 1)), SqlError("second", span=source.span(2, 3))])
    assert errors.render().count("error:") == 2 and errors.span == source.span(0, 1)


def test_a_failed_job_shows_what_the_worker_said() -> None:
    assert "    ValueError: boom" in JobError("job x failed", tail="Traceback …\nValueError: boom\n").render()


def test_suggestions_and_listings() -> None:
    assert did_you_mean("max_seq_lenght", ["max_seq_length", "seed"]) == "did you mean `max_seq_length`?"
    assert did_you_mean("zzz", ["max_seq_length"]) is None
    assert listing([]) == "none" and listing(["b", "a", "a"]) == "a, b"
    assert listing([str(i) for i in range(10, 30)]).endswith("and 8 more")

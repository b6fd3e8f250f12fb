"""llm_param, llm_stack, llm_response_predict, … -> plain Spark SQL. No user-defined function is needed on any engine.

They speak the JSON protocols of both generations of the original: a reply is `[{"predict": …, "input": …}]` or
`{"output": …}`. Knows nothing of engines or models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from byzer_ft.errors import NotSupportedError, ScriptError

if TYPE_CHECKING:
    from sqlglot import exp


def rewrite(tree: exp.Expr) -> exp.Expr:
    """`tree` with every built-in function written out. `tree` itself is left alone."""
    from sqlglot import exp

    def written_out(node: exp.Expr) -> exp.Expr:
        if not isinstance(node, exp.Anonymous):
            return node
        entry = BUILT_INS.get(node.name.lower())
        if entry is None:
            return node
        arguments, build, usage = entry
        if len(node.expressions) != arguments:
            raise ScriptError(
                f"{node.name.lower()} takes {arguments} argument{'s' * (arguments != 1)}, not {len(node.expressions)}",
                hint=usage,
            )
        parts = [part.transform(written_out) for part in node.expressions]
        if any(isinstance(part, exp.Null) for part in parts):
            return _sql(
                "cast(null as string)" if build in (_predict, _full, _prompt) else "cast(null as array<string>)"
            )
        built: exp.Expr = build(*parts)
        return built

    rewritten: exp.Expr = tree.copy().transform(written_out)
    return rewritten


def calls_any(words: frozenset[str]) -> bool:
    """Whether a query may call a built-in function."""
    return not words.isdisjoint(BUILT_INS)


def _sql(template: str, **parts: exp.Expr) -> exp.Expr:
    """Spark SQL with `:name` filled in."""
    import sqlglot
    from sqlglot import exp

    parsed: Any = sqlglot.parse_one(template, dialect="spark")
    filled: Any = exp.replace_placeholders(parsed, **{k: v.copy() for k, v in parts.items()})
    return filled  # type: ignore[no-any-return]  # sqlglot says nothing of its type


def _param(values: exp.Expr) -> exp.Expr:
    return _sql("if(:m is null, null, array(to_json(:m)))", m=values)


def _stack(reply: exp.Expr, param: exp.Expr) -> exp.Expr:
    """The conversation of `reply` goes on with `param`; what serves the function reads the pair."""
    return _sql(
        "if(:r is null or :p is null, null, array(to_json(named_struct('stack', array(get(:r, 0), get(:p, 0))))))",
        r=reply,
        p=param,
    )


def _predict(reply: exp.Expr) -> exp.Expr:
    paths = ("$[0].predict", "$.predict", "$[0].output", "$.output")
    found = ", ".join(f"get_json_object(get(:r, 0), '{path}')" for path in paths)
    return _sql(f"coalesce({found})", r=reply)


def _full(reply: exp.Expr) -> exp.Expr:
    """The instruction with its answer, as the original shows it."""
    paths = ("$[0].input.instruction", "$.input.instruction", "$[0].input", "$.input")
    asked = ", ".join(f"get_json_object(get(:r, 0), '{path}')" for path in paths)
    return _sql(f"concat(coalesce({asked}, ''), :answer)", r=reply, answer=_predict(reply))


def _prompt(form: exp.Expr, values: exp.Expr) -> exp.Expr:
    """`{0}`, `{1}`, … replaced in one pass, so that a value that contains `{1}` stays as it is."""
    from sqlglot import exp

    if not (isinstance(form, exp.Literal) and form.is_string):
        raise NotSupportedError(
            "llm_prompt needs its format as a literal string", hint="llm_prompt('Translate: {0}', array(text))"
        )
    parts = re.split(r"\{(\d+)\}", form.this)
    pieces = [
        exp.Literal.string(part) if i % 2 == 0 else _sql(f"get(:v, {int(part)})", v=values)
        for i, part in enumerate(parts)
        if i % 2 == 1 or part
    ]
    return exp.Anonymous(this="concat", expressions=pieces or [exp.Literal.string("")])


def _split(*_: exp.Expr) -> exp.Expr:
    raise NotSupportedError("llm_split is not supported yet", hint="split(text, '\\n') is Spark's own")


BUILT_INS: dict[str, tuple[int, Callable[..., Any], str]] = {
    "llm_param": (1, _param, 'llm_param(map("instruction", question))'),
    "llm_stack": (2, _stack, 'llm_stack(q, llm_param(map("instruction", "…")))'),
    "llm_response_predict": (1, _predict, "llm_response_predict(q)"),
    "llm_result": (1, _predict, "llm_result(q)"),
    "llm_response_full": (1, _full, "llm_response_full(q)"),
    "llm_prompt": (2, _prompt, "llm_prompt('Translate: {0}', array(text))"),
    "llm_split": (3, _split, "not supported yet"),
}

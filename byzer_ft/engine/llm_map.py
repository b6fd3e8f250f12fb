"""A SELECT that calls models -> the same SELECT without calls, over rows that carry the answers.

Each round takes the calls of one query block whose arguments are ready, computes the block's rows once with the
arguments beside them, asks each distinct argument once, writes the answers into the rows, and lets the block read
those. What cannot be done so is refused with the rewrite that can. Knows nothing of what a model is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzer_ft.engine import built_ins
from byzer_ft.engine.references import Select
from byzer_ft.errors import EngineError, NotFoundError, NotSupportedError, ScriptError, Span

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlglot import exp

    from byzer_ft.engine.engine import SparkEngine
    from byzer_ft.engine.models import Models

CHUNK = 4096  # arguments of one request to a model
ROW = "__byzer_ft_row"
OWN_SELECT = "compute the call in a select of its own, then use its column"


def rewrite_built_ins(select: Select, span: Span | None) -> Select:
    """The query with llm_* functions as plain SQL."""
    from byzer_ft.engine.engine import locate

    if select.tree is None or not built_ins.calls_any(select.words):
        return select
    try:
        tree = built_ins.rewrite(select.tree)
    except ScriptError as error:
        raise error.at(locate(span, error.message.split()[0])) from None
    return Select(text_of(tree), tree, select.tables)


def calls_models(select: Select, functions: frozenset[str]) -> bool:
    return select.tree is not None and next(_calls(select.tree, functions), None) is not None


def run_with_models(engine: SparkEngine, select: Select, models: Models, span: Span | None) -> Path:
    """Computes the query; returns the scratch folder with its rows."""
    assert select.tree is not None
    run = _Run(engine, models, models.functions(), span, select.tree.copy())
    try:
        run.check()
        while run.round():
            pass
        return engine.materialise(engine.spark.frame(text_of(run.tree)))
    finally:
        run.clean()


# ----------------------------------------------------------------------------------------------------- reading trees


def text_of(tree: exp.Expr) -> str:
    return tree.sql(dialect="spark", normalize_functions="lower", comments=False)


def _calls(tree: exp.Expr, functions: frozenset[str]) -> Iterator[exp.Expr]:
    from sqlglot import exp

    return (node for node in tree.find_all(exp.Anonymous) if node.name.lower() in functions)


def _block(node: exp.Expr) -> exp.Expr | None:
    """The SELECT that a node belongs to."""
    from sqlglot import exp

    return node.find_ancestor(exp.Select, exp.SetOperation)


def _clause(node: exp.Expr, block: exp.Expr) -> str:
    """The clause of `block` in which a node stands: `expressions`, `where`, `joins`, …"""
    while node.parent is not None and node.parent is not block:
        node = node.parent
    return str(node.arg_key)


def _between(node: exp.Expr, block: exp.Expr) -> Iterator[exp.Expr]:
    """The ancestors of a node inside its block, the nearest first."""
    parent = node.parent
    while parent is not None and parent is not block:
        yield parent
        parent = parent.parent


def _blocks(node: exp.Expr) -> Iterator[exp.Expr]:
    """All SELECTs, each after those that it reads: CTEs, then subqueries, then itself."""
    from sqlglot import exp

    clause = node.args.get("with_")
    if clause is not None:
        yield from _blocks(clause)
    for child in node.iter_expressions():
        if child is not clause:
            yield from _blocks(child)
    if isinstance(node, exp.Select):
        yield node


def _own(block: exp.Expr, *kinds: type[exp.Expr]) -> Iterator[exp.Expr]:
    """Nodes of these kinds in the block itself, not in its subqueries."""
    return (node for node in block.find_all(*kinds) if _block(node) is block)


def _alias(node: exp.Expr) -> exp.Expr:
    """An output column without its `as name`."""
    from sqlglot import exp

    return node.this if isinstance(node, exp.Alias) else node


# --------------------------------------------------------------------------------------------------------- the rounds


@dataclass
class _Run:
    """One query on its way to having no calls."""

    engine: SparkEngine
    models: Models
    functions: frozenset[str]
    span: Span | None
    tree: exp.Expr
    views: list[str] = field(default_factory=list)
    known: dict[str, dict[Any, tuple[Any, str | None]]] = field(default_factory=dict)  # function -> argument -> answer

    def check(self) -> None:
        """Before any model is asked: calls are well-formed, and the query with each call replaced by its argument,
        which has the same type, is one that the engine accepts."""
        from sqlglot import exp

        for call in _calls(self.tree, self.functions):
            self._check_call(call)
        if isinstance(self.tree, exp.Select | exp.SetOperation):
            self.engine.spark.frame(text_of(self._placeholder(self.tree)))
            return
        raise self._refused("a call outside of a select", OWN_SELECT)

    def clean(self) -> None:
        for view in self.views:
            self.engine.drop(view)

    def round(self) -> bool:
        """Takes one step; False when no call is left."""
        for block in _blocks(self.tree):
            calls = [c for c in _calls(block, self.functions) if _block(c) is block]
            if calls:
                _Round(self, block).take(calls)
                return True
        left = next(_calls(self.tree, self.functions), None)
        if left is not None:
            raise self._refused(f"{text_of(left)} outside of a select's own clauses", OWN_SELECT)
        return False

    def _check_call(self, call: exp.Expr) -> None:
        from sqlglot import exp

        name = call.name
        if len(call.expressions) != 1:
            raise ScriptError(
                f"{name} takes one argument, a STRING or an ARRAY<STRING>, not {len(call.expressions)}",
                hint=f"{name}(concat(a, ' ', b)), or {name}(llm_param(map('instruction', a)))",
                span=self._at(name),
            )
        if isinstance(call.expressions[0], exp.Star | exp.Distinct):
            raise self._refused(text_of(call), f"name the column: {name}(question)", name)
        outer = call.parent
        if isinstance(outer, exp.Dot | exp.WithinGroup | exp.Filter) or (
            isinstance(outer, exp.Window) and call.arg_key == "this"
        ):
            raise self._refused(text_of(outer), OWN_SELECT, name)
        if call.find_ancestor(exp.Lambda):
            raise self._refused(f"{name} inside a lambda", "explode the array in a select, then call it", name)
        if call.find_ancestor(exp.With) and any(w.args.get("recursive") for w in self.tree.find_all(exp.With)):
            raise self._refused(f"{name} in a recursive query", OWN_SELECT, name)

    def _placeholder(self, tree: exp.Expr) -> exp.Expr:
        from sqlglot import exp

        def argument(node: exp.Expr) -> exp.Expr:
            if isinstance(node, exp.Anonymous) and node.name.lower() in self.functions:
                return exp.paren(node.expressions[0].transform(argument))
            return node

        return tree.copy().transform(argument)

    def _refused(self, what: str, hint: str, name: str | None = None) -> NotSupportedError:
        return NotSupportedError(f"a model call cannot be used so: {what}", hint=hint, span=self._at(name))

    def _at(self, name: str | None) -> Span | None:
        from byzer_ft.engine.engine import locate

        return locate(self.span, name) if name else self.span


@dataclass
class _Ask:
    """One distinct call of a round."""

    function: str
    argument: exp.Expr
    number: int

    @property
    def given(self) -> str:
        return f"__a{self.number}"

    @property
    def answer(self) -> str:
        return f"__r{self.number}"


class _Round:
    """One block and some of its calls. Computes the block's rows with arguments, and puts the answers in."""

    def __init__(self, run: _Run, block: exp.Expr) -> None:
        self.run = run
        self.block = block
        self.columns: dict[str, tuple[str, exp.Expr]] = {}  # text -> (name in the rows, expression)
        self.asks: dict[tuple[str, str], _Ask] = {}

    def take(self, calls: list[exp.Expr]) -> None:
        from sqlglot import exp

        ready = [c for c in calls if not any(n is not c for n in _calls(c, self.run.functions))]
        for call in ready:
            self._check_place(call)
        for clause in ("sort", "cluster", "distribute"):
            if self.block.args.get(clause):
                raise self.run._refused(f"beside {clause} by", "use order by")
        self.sources = self._source_columns()
        self._name_outputs()
        self._spell_out_groups()
        calls = [c for c in _calls(self.block, self.run.functions) if _block(c) is self.block]
        ready = [c for c in calls if not any(n is not c for n in _calls(c, self.run.functions))]
        where = [c for c in ready if _clause(c, self.block) == "where"]
        self.aggregated = bool(self.block.args.get("group")) or any(
            _clause(a, self.block) in ("expressions", "having", "order") and not a.find_ancestor(exp.Window)
            for a in _own(self.block, exp.AggFunc)
        )
        grouped = {text_of(c) for c in ready if _clause(c, self.block) == "group"}
        row_level = [c for c in ready if not self.aggregated or text_of(c) in grouped or self._inside_aggregate(c)]
        if where:
            self._row_round(where, pushed=False)
        elif row_level:
            self._row_round(row_level, pushed=self._may_push(calls))
        else:
            self._group_round(ready)

    # ---------------------------------------------------------------------------------------- what the block looks like

    def _check_place(self, call: exp.Expr) -> None:
        clause = _clause(call, self.block)
        if clause in ("expressions", "where", "group", "order", "having"):
            return
        places = {
            "joins": ("in a join condition", "call it in a select before the join, then join on its column"),
            "laterals": ("in a lateral view", "call it in a select before, then use its column in the lateral view"),
            "distinct": ("in distinct on", OWN_SELECT),
        }
        what, hint = places.get(clause, (f"in {clause.rstrip('_')}", OWN_SELECT))
        raise self.run._refused(f"{text_of(call)} {what}", hint, call.name)

    def _inside_aggregate(self, call: exp.Expr) -> bool:
        from sqlglot import exp

        return any(isinstance(a, exp.AggFunc) for a in _between(call, self.block))

    def _source_columns(self) -> list[str] | None:
        """The columns of FROM, unqualified; None without FROM."""
        from sqlglot import exp

        if not self.block.args.get("from_"):
            return None
        return self._names(self._inner([exp.Star()], keep_where=False))

    def _names(self, tree: exp.Expr) -> list[str]:
        return [name for name, _ in self.run.engine.spark.columns(self._frame(tree))]

    def _frame(self, tree: exp.Expr) -> Any:
        from byzer_ft.engine.spark import UnknownColumn

        try:
            return self.run.engine.spark.frame(text_of(tree))
        except UnknownColumn as error:
            inner = f"in a subquery that reads `{'.'.join(error.path)}` of an outer query"
            raise self.run._refused(inner, "join the tables, then call") from None
        except (ScriptError, NotFoundError) as error:
            raise self.run._refused(error.message, OWN_SELECT) from None

    def _inner(self, outputs: list[exp.Expr], keep_where: bool = True) -> exp.Expr:
        """The block's FROM, joins, lateral views and (its call-free) WHERE, with other outputs."""
        inner = self.block.copy()
        inner.set("expressions", outputs)
        for clause in ("group", "having", "order", "limit", "offset", "distinct", "qualify", "windows", "sort"):
            inner.set(clause, None)
        if not keep_where:
            inner.set("where", None)
        return self._with_ctes(inner)

    def _with_ctes(self, inner: exp.Expr) -> exp.Expr:
        """`inner` with the CTEs that its block can see from outside."""
        from sqlglot import exp

        seen: list[exp.Expr] = []
        child, node = self.block, self.block.parent
        while node is not None:
            clause = node if isinstance(node, exp.With) else node.args.get("with_")
            if isinstance(clause, exp.With) and clause is not child:
                before = []
                for cte in clause.expressions:
                    if cte is child:
                        break
                    before.append(cte.copy())
                seen = before + seen
                child = clause
            else:
                child = node
            node = node.parent
        if not seen:
            return inner
        own = inner.args.get("with_")
        inner.set("with_", exp.With(expressions=seen + (own.expressions if own else [])))
        return inner

    def _name_outputs(self) -> None:
        """Expands stars, resolves names of outputs used in outputs, and gives every output its name."""
        from sqlglot import exp

        outputs: list[exp.Expr] = []
        for output in self.block.expressions:
            outputs += self._expanded(output) if _is_star(output) else [output]
        self.block.set("expressions", outputs)
        self._resolve_lateral_names()
        names = self._output_names()
        if len(names) != len(self.block.expressions):
            raise self.run._refused(
                "beside a function that makes several columns", "explode in one select, call in the next"
            )
        named: list[exp.Expr] = []
        for output, name in zip(self.block.expressions, names, strict=True):
            if isinstance(output, exp.Alias):
                named.append(output)
            else:
                called = next(_calls(output, self.run.functions), None) is not None
                shown = text_of(output) if called else name
                named.append(exp.alias_(output.copy(), exp.to_identifier(shown, quoted=True)))
        self.block.set("expressions", named)

    def _expanded(self, star: exp.Expr) -> list[exp.Expr]:
        from sqlglot import exp

        plain = exp.column(exp.Star(), table=star.args["table"].copy()) if isinstance(star, exp.Column) else exp.Star()
        star_node = star.this if isinstance(star, exp.Column) else star
        if any(star_node.args.get(k) for k in ("except_", "replace", "rename")):
            raise self.run._refused("`* except` beside a model call", "name the columns")
        names = self._names(self._inner([plain], keep_where=False))
        table = star.args["table"] if isinstance(star, exp.Column) else None
        return [
            exp.column(exp.to_identifier(n, quoted=True), table=table.copy() if table is not None else None)
            for n in names
        ]

    def _resolve_lateral_names(self) -> None:
        """`select upper(a) as u, f(u)`: an output that uses an earlier output's name gets its expression."""
        from sqlglot import exp

        known: dict[str, exp.Expr] = {}
        sources = {s.lower() for s in self.sources or ()}
        resolved = []
        for output in self.block.expressions:

            def expression(node: exp.Expr) -> exp.Expr:
                if isinstance(node, exp.Column) and not node.table and node.name.lower() not in sources:
                    found = known.get(node.name.lower())
                    if found is not None:
                        return exp.paren(found.copy())
                return node

            changed = output.copy().transform(expression)
            resolved.append(changed)
            if isinstance(changed, exp.Alias):
                known[changed.alias.lower()] = changed.this
        self.block.set("expressions", resolved)

    def _spell_out_groups(self) -> None:
        """`select f(x) as y … group by y` becomes `group by f(x)`."""
        group = self.block.args.get("group")
        if group is None:
            return
        spelled = [self._substituted(g, output_first=False) for g in group.expressions]
        kept = [s if self._holds_call(s) else g for s, g in zip(spelled, group.expressions, strict=True)]
        group.set("expressions", [k.unnest() if self._holds_call(k) else k for k in kept])

    def _output_names(self) -> list[str]:
        """The names that the engine gives, by position."""
        placeholder = self.run._placeholder(self.block)
        for clause in ("order", "limit", "offset", "where"):
            placeholder.set(clause, None)
        return self._names(self._with_ctes(placeholder))

    def _may_push(self, calls: list[exp.Expr]) -> bool:
        """Whether `order by` and `limit` choose the same rows before the calls are made as after."""
        from sqlglot import exp

        block = self.block
        if not (block.args.get("limit") or block.args.get("offset")):
            return False
        if self.aggregated or any(block.args.get(c) for c in ("distinct", "having", "qualify")):
            return False
        if any(True for _ in _own(block, exp.Window, exp.UDTF)):
            return False
        if any(_clause(c, block) != "expressions" for c in calls):
            return False
        return all(next(_calls(o, self.run.functions), None) is None for o in self._ordering())

    def _ordering(self) -> list[exp.Expr]:
        """ORDER BY with names and positions of outputs replaced by their expressions."""
        order = self.block.args.get("order")
        return [self._substituted(item, output_first=True) for item in order.expressions] if order else []

    def _substituted(self, item: exp.Expr, output_first: bool) -> exp.Expr:
        from sqlglot import exp

        outputs = {o.alias.lower(): o.this for o in self.block.expressions}
        sources = {s.lower() for s in self.sources or ()}
        top = item.this if isinstance(item, exp.Ordered) else item
        if isinstance(top, exp.Literal) and top.is_int:
            position = int(top.this)
            if not 1 <= position <= len(self.block.expressions):
                raise ScriptError(f"position {position} is not in the select list", span=self.run.span)
            replacement: exp.Expr = self.block.expressions[position - 1].this.copy()
            if top is item:
                return replacement
            changed = item.copy()
            changed.set("this", replacement)
            return changed

        def expression(node: exp.Expr) -> exp.Expr:
            if isinstance(node, exp.Column) and not node.table:
                found = outputs.get(node.name.lower())
                if found is not None and (output_first or node.name.lower() not in sources):
                    return exp.paren(found.copy())
            return node

        return item.copy().transform(expression)

    # ------------------------------------------------------------------------------------------- calls on single rows

    def _row_round(self, calls: list[exp.Expr], pushed: bool) -> None:
        """The arguments are columns of FROM: compute rows, ask, and run the whole block over them."""
        from sqlglot import exp

        ids = {id(c): self._ask(c) for c in calls}
        order = self._ordering() if pushed else []
        inner_where, outer_where = self._split_where()
        block = self.block

        def moved(node: exp.Expr, outputs_first: bool = False) -> exp.Expr:
            return self._moved(node, ids, outputs_first)

        new: dict[str, Any] = {"expressions": [moved(o) for o in block.expressions]}
        for clause in ("group", "having", "qualify"):
            if block.args.get(clause):
                new[clause] = moved(block.args[clause])
        if block.args.get("order") and not pushed:
            new["order"] = moved(block.args["order"], True)
        if outer_where is not None:
            new["where"] = exp.Where(this=moved(outer_where))
        if block.args.get("windows"):
            new["windows"] = [moved(w) for w in block.args["windows"]]

        inner = self._inner(self._outputs(), keep_where=True)
        inner.set("where", exp.Where(this=inner_where) if inner_where is not None else None)
        if pushed:
            if order:
                inner.set("order", exp.Order(expressions=order))
            for clause in ("limit", "offset"):
                inner.set(clause, block.args.get(clause))
                block.set(clause, None)
            block.set("order", None)
        for clause, value in new.items():
            block.set(clause, value)
        if outer_where is None:
            block.set("where", None)
        self._read_rows(inner)

    def _split_where(self) -> tuple[exp.Expr | None, exp.Expr | None]:
        """(conditions without calls, conditions with them)."""
        from sqlglot import exp

        where = self.block.args.get("where")
        if where is None:
            return None, None
        parts = list(where.this.flatten()) if isinstance(where.this, exp.And) else [where.this]
        with_calls = [p for p in parts if next(_calls(p, self.run.functions), None) is not None]
        without = [p for p in parts if not any(p is w for w in with_calls)]
        return (
            exp.and_(*[p.copy() for p in without], copy=False) if without else None,
            exp.and_(*with_calls, copy=False) if with_calls else None,
        )

    def _moved(self, node: exp.Expr, ids: dict[int, _Ask], outputs_first: bool) -> exp.Expr:
        """An expression of the block, with calls and columns replaced by columns of the computed rows."""
        from sqlglot import exp

        ask = ids.get(id(node))
        if ask is not None:
            return exp.column(ask.answer)
        if isinstance(node, exp.Column):
            return self._moved_column(node, outputs_first)
        if self._is_atom(node):
            return exp.column(self._column(node))
        changed = node.copy()
        for key, value in node.args.items():
            if isinstance(value, exp.Expr):
                changed.set(key, self._moved(value, ids, outputs_first))
            elif isinstance(value, list):
                changed.set(
                    key,
                    [self._moved(v, ids, outputs_first) if isinstance(v, exp.Expr) else v for v in value],
                )
        return changed

    def _moved_column(self, node: exp.Expr, outputs_first: bool) -> exp.Expr:
        from sqlglot import exp

        if not node.args.get("table"):
            name = node.name.lower()
            output = any(isinstance(o, exp.Alias) and o.alias.lower() == name for o in self.block.expressions)
            source = self.sources is None or name in {s.lower() for s in self.sources}
            if output and (outputs_first or not source):
                return node.copy()
        return exp.column(self._column(node))

    def _is_atom(self, node: exp.Expr) -> bool:
        """A subquery, or a function over `*`, is computed where its tables are."""
        from sqlglot import exp

        if next(_calls(node, self.run.functions), None) is not None:
            return False
        if isinstance(node, exp.Subquery | exp.Exists):
            return True
        if isinstance(node, exp.In) and node.args.get("query"):
            return True
        stars = [s for s in node.find_all(exp.Star) if s.parent is node or s.parent in node.expressions]
        return isinstance(node, exp.Func) and not isinstance(node, exp.Count) and bool(stars)

    # ---------------------------------------------------------------------------------------------- calls over groups

    def _group_round(self, calls: list[exp.Expr]) -> None:
        """The arguments are made of groups: compute the groups, then call over them."""
        from sqlglot import exp

        block = self.block
        if any(_clause(c, block) == "having" for c in calls):
            raise self.run._refused("in having", "call it in the select list, and filter in a second select")
        order = self._ordering()
        order_called = any(next(_calls(o, self.run.functions), None) is not None for o in order)
        group = block.args.get("group")
        if group is not None and group.args.get("all"):
            raise self.run._refused("with group by all", "name the columns after group by")
        if group is not None:
            group = group.copy()
            group.set("expressions", [self._substituted(g, output_first=False) for g in group.expressions])
        having = block.args.get("having")
        having = self._substituted(having, output_first=False) if having is not None else None
        late = order_called or bool(block.args.get("distinct"))
        outputs = [self._pieces(o) for o in block.expressions]
        late_order = [self._pieces(o) for o in order] if late else []

        inner = self._inner(self._outputs())
        inner.set("group", group)
        inner.set("having", having)
        if not late:
            inner.set("order", exp.Order(expressions=[o.copy() for o in order]) if order else None)
            for clause in ("limit", "offset"):
                inner.set(clause, block.args.get(clause))
                block.set(clause, None)
        block.set("expressions", outputs)
        for clause in ("where", "group", "having", "windows", "qualify"):
            block.set(clause, None)
        block.set("order", exp.Order(expressions=late_order) if late_order else None)
        self._read_rows(inner)

    def _pieces(self, node: exp.Expr) -> exp.Expr:
        """Everything that holds no call is computed with the groups, as it stands."""
        from sqlglot import exp

        if self._is_call(node) and not any(n is not node for n in _calls(node, self.run.functions)):
            return exp.column(self._ask(node, wrap=False).answer)
        if next(_calls(node, self.run.functions), None) is None and not isinstance(node, exp.Alias | exp.Ordered):
            return node.copy() if isinstance(node, exp.Literal) else exp.column(self._column(node))
        changed = node.copy()
        for key, value in node.args.items():
            if key == "alias":
                continue
            if isinstance(value, exp.Expr):
                changed.set(key, self._pieces(value))
            elif isinstance(value, list):
                changed.set(key, [self._pieces(v) if isinstance(v, exp.Expr) else v for v in value])
        return changed

    def _is_call(self, node: exp.Expr) -> bool:
        from sqlglot import exp

        return isinstance(node, exp.Anonymous) and node.name.lower() in self.run.functions

    # ------------------------------------------------------------------------------------------------------- the rows

    def _column(self, node: exp.Expr) -> str:
        """The name, in the computed rows, of an expression over FROM."""
        key = text_of(node)
        if key not in self.columns:
            self.columns[key] = (f"__c{len(self.columns)}", node.copy())
        return self.columns[key][0]

    def _ask(self, call: exp.Expr, wrap: bool = True) -> _Ask:
        """The question of a call; equal ones are one."""
        argument = call.expressions[0].copy()
        if wrap:
            argument = self._only_where_taken(call, argument)
        key = (call.name.lower(), text_of(argument))
        if key not in self.asks:
            self.asks[key] = _Ask(call.name.lower(), argument, len(self.asks))
        return self.asks[key]

    def _only_where_taken(self, call: exp.Expr, argument: exp.Expr) -> exp.Expr:
        """A call in a branch of CASE or IF is asked only for rows that take the branch."""
        from sqlglot import exp

        child: exp.Expr = call
        for ancestor in _between(call, self.block):
            if isinstance(ancestor, exp.AggFunc | exp.Window):
                break
            if isinstance(ancestor, exp.If) and not isinstance(ancestor.parent, exp.Case):
                wrapped = self._branch([ancestor], child, ancestor.args.get("false"), None, argument)
                argument = wrapped or argument
            elif isinstance(ancestor, exp.Case):
                branches = ancestor.args["ifs"]
                wrapped = self._branch(branches, child, ancestor.args.get("default"), ancestor.this, argument)
                argument = wrapped or argument
            child = ancestor
        return argument

    def _branch(
        self, ifs: list[Any], child: exp.Expr, default: Any, subject: Any, argument: exp.Expr
    ) -> exp.Expr | None:
        from sqlglot import exp

        cases = []
        for branch in ifs:
            condition = branch.this
            inside = child is condition or (child is branch and self._holds_call(condition))
            if inside or self._holds_call(condition) or not self._on_rows(condition):
                return None
            taken = child is branch or child is branch.args.get("true")
            cases.append(exp.If(this=condition.copy(), true=argument.copy() if taken else exp.null()))
            if taken:
                return exp.Case(this=subject.copy() if subject is not None else None, ifs=cases)
        if child is not default or (subject is not None and (self._holds_call(subject) or not self._on_rows(subject))):
            return None
        return exp.Case(this=subject.copy() if subject is not None else None, ifs=cases, default=argument.copy())

    def _holds_call(self, node: exp.Expr) -> bool:
        return next(_calls(node, self.run.functions), None) is not None

    def _on_rows(self, node: exp.Expr) -> bool:
        """Whether a condition can be computed on the rows of FROM."""
        from sqlglot import exp

        sources = {s.lower() for s in self.sources or ()}
        if node.find(exp.AggFunc, exp.Window, exp.Query):
            return False
        return all(c.args.get("table") or c.name.lower() in sources for c in node.find_all(exp.Column))

    def _outputs(self) -> list[exp.Expr]:
        from sqlglot import exp

        outputs = [exp.alias_(node.copy(), name) for name, node in self.columns.values()]
        return outputs + [exp.alias_(ask.argument.copy(), ask.given) for ask in self.asks.values()]

    def _read_rows(self, inner: exp.Expr) -> None:
        """Computes `inner`, asks, and lets the block read the rows with answers instead of its FROM."""
        from sqlglot import exp

        view = self._compute(inner)
        block = self.block
        block.set("from_", exp.From(this=exp.to_table(view)))
        for clause in ("joins", "laterals", "hint", "pivots", "sample"):
            block.set(clause, None)
        plain = not block.args.get("distinct") and not block.args.get("group")
        plain = plain and not any(a.find_ancestor(exp.Window) is None for a in _own(block, exp.AggFunc))
        if block.parent is None and plain:
            order = block.args.get("order")
            items = list(order.expressions) if order else []
            if ROW not in {text_of(i) for i in items}:
                block.set("order", exp.Order(expressions=[*items, exp.Ordered(this=exp.column(ROW))]))

    def _compute(self, inner: exp.Expr) -> str:
        engine = self.run.engine
        frame = self._frame(inner)
        self._check_types(engine.spark.columns(frame))
        schema, batches = engine.spark.batches(frame)
        given = engine.new_folder()
        try:
            engine.write_parquet(schema, batches, given)
            answers = {a.number: _Answered(self.run, a) for a in self.asks.values()}
            _ask_all(self.run, list(answers.values()), given)
            answered = engine.new_folder()
            _write_answers(engine, given, answered, answers)
        finally:
            shutil.rmtree(given, ignore_errors=True)
        view = f"__rows_{answered.name}"
        engine.adopt_folder(view, answered, hidden=True)
        self.run.views.append(view)
        return view

    def _check_types(self, columns: list[tuple[str, str]]) -> None:
        kinds = dict(columns)
        for ask in self.asks.values():
            kind = kinds[ask.given]
            if kind not in ("string", "array<string>", "void") and not kind.startswith(("varchar", "char")):
                text = text_of(ask.argument)
                raise ScriptError(
                    f"{ask.function} takes a STRING or an ARRAY<STRING>; {text} is {kind.upper()}",
                    hint=f"{ask.function}(cast({text} as string))",
                    span=self.run._at(ask.function),
                )


def _is_star(output: exp.Expr) -> bool:
    from sqlglot import exp

    return isinstance(output, exp.Star) or (isinstance(output, exp.Column) and isinstance(output.this, exp.Star))


# ---------------------------------------------------------------------------------------------------------- asking


@dataclass
class _Answered:
    """The distinct arguments of one call and their answers, in the order of first sight."""

    run: _Run
    ask: _Ask
    positions: dict[Any, int] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)


def _key(value: Any) -> Any:
    """What makes two arguments the same."""
    return tuple(value) if isinstance(value, list) else value


def _ask_all(run: _Run, answered: list[_Answered], folder: Path) -> None:
    """Fills in the answers; calls of one function share their distinct arguments."""
    by_function: dict[str, list[_Answered]] = {}
    for item in answered:
        by_function.setdefault(item.ask.function, []).append(item)
    for function, items in by_function.items():
        known = run.known.setdefault(function, {})
        rows: dict[Any, int] = {}
        for item in items:
            for value in _column_values(folder, item.ask.given):
                if value is not None:
                    key = _key(value)
                    rows[key] = rows.get(key, 0) + 1
                    item.positions.setdefault(key, len(item.positions))
        fresh = [key for key in rows if key not in known]
        _ask_function(run, function, fresh, known)
        _report(run, function, {key: rows[key] for key in fresh}, known)
        for item in items:
            item.values = [known[key][0] for key in item.positions]


def _column_values(folder: Path, column: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / "part-00000.parquet") as file:
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()


def _ask_function(run: _Run, function: str, keys: list[Any], known: dict[Any, tuple[Any, str | None]]) -> None:
    """Strings as they are; of arrays only the elements that are not NULL, which stay where they were."""
    import pyarrow as pa

    for nested in (False, True):
        wanted = [k for k in keys if isinstance(k, tuple) is nested]
        askable = [k for k in wanted if not nested or any(e is not None for e in k)]
        for key in wanted:
            known[key] = (list(key), None) if nested else (None, None)
        kind = pa.list_(pa.string()) if nested else pa.string()
        for start in range(0, len(askable), CHUNK):
            chunk = askable[start : start + CHUNK]
            given = [[e for e in k if e is not None] if nested else k for k in chunk]
            replies = run.models.ask(function, pa.array(given, kind))
            _check_reply(function, replies.values, given, kind)
            for i, (key, value) in enumerate(zip(chunk, replies.values.to_pylist(), strict=True)):
                reason = replies.errors.get(i) or (None if value is not None else "no answer")
                known[key] = (None if reason else _put_back(key, value) if nested else value, reason)


def _put_back(key: tuple[Any, ...], answers: list[Any]) -> list[Any]:
    if len(answers) == len(key):
        return answers
    left = iter(answers)
    return [None if e is None else next(left, None) for e in key]


def _check_reply(function: str, values: pa.Array, given: list[Any], kind: pa.DataType) -> None:
    if len(values) != len(given):
        raise EngineError(f"{function} gave {len(values)} answers to {len(given)} questions")
    import pyarrow as pa

    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    if nested != pa.types.is_list(kind) and not pa.types.is_null(values.type):
        raise EngineError(f"{function} gave {values.type} for {kind}")


def _report(run: _Run, function: str, rows: dict[Any, int], known: dict[Any, tuple[Any, str | None]]) -> None:
    """One warning for all failed rows; an error when nothing else is left."""
    reasons: dict[str, int] = {}
    for key, count in rows.items():
        reason = known[key][1]
        if reason:
            reasons[reason] = reasons.get(reason, 0) + count
    if not reasons:
        return
    failed, total = sum(reasons.values()), sum(rows.values())
    nothing_worked = all(reason for value, reason in known.values() if value is not None or reason)
    shown = "; ".join(f"{r} ({n} rows)" for r, n in sorted(reasons.items(), key=lambda i: -i[1])[:3])
    if nothing_worked:
        raise EngineError(f"{function} failed for all {total} rows: {shown}", span=run._at(function))
    run.engine.notice(f"{function} failed for {failed} of {total} rows, which are NULL: {shown}")


def _write_answers(engine: SparkEngine, given: Path, answered: Path, answers: dict[int, _Answered]) -> None:
    """The computed rows again, arguments replaced by answers, numbered in their order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(given / "part-00000.parquet") as file:
        source = file.schema_arrow
        arguments = {a.ask.given: a for a in answers.values()}
        kept = [f for f in source if f.name not in arguments]
        new = [pa.field(a.ask.answer, _answer_type(source.field(a.ask.given).type)) for a in answers.values()]
        schema = pa.schema([*kept, *new, pa.field(ROW, pa.int64())])

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in file.iter_batches():
                columns = [batch.column(f.name) for f in kept]
                for item, column in zip(answers.values(), new, strict=True):
                    columns.append(_looked_up(item, batch.column(item.ask.given), column.type))
                columns.append(pa.array(range(start, start + batch.num_rows), pa.int64()))
                start += batch.num_rows
                yield pa.record_batch(columns, schema=schema)

        engine.write_parquet(schema, batches(), answered)


def _answer_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.field("element", pa.string())) if pa.types.is_list(kind) else pa.string()


def _looked_up(item: _Answered, arguments: pa.Array, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    values = item.values
    found = [None if v is None else values[item.positions[_key(v)]] for v in arguments.to_pylist()]
    return pa.array(found, kind)

"""`action="infer"` -> a SQL function, and calls of such functions -> answers.

A function is a catalog row naming an application, an adapter and defaults; applications run on Ray Serve. The row is
switched only after the new model has answered, and the old application is removed after that, so a redeployment drops
nothing. Knows nothing of queries: the engine hands over distinct arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from byzer_ft.errors import ConflictError, ModelError, NotFoundError, did_you_mean, listing
from byzer_ft.intents import Deploy
from byzer_ft.session.models import ModelHandle, ModelTables
from byzer_ft.session.results import Result
from byzer_ft.session.rooms import Rooms

if TYPE_CHECKING:
    import pyarrow as pa

    from byzer_ft.catalog import FunctionRow
    from byzer_ft.engine import Answers


class Functions:
    """The owner's model functions. It is also the engine's door to them (its protocol `Models`)."""

    def __init__(self, rooms: Rooms, models: ModelTables) -> None:
        self._rooms = rooms
        self._models = models
        self._checked: set[str] = set()  # applications known to stand in this process

    # ------------------------------------------------------------------------------------------------------ deploying

    def deploy(self, intent: Deploy) -> Result:
        if intent.reconnect:
            return self._reconnect(intent)
        trust = {"trust_remote_code": intent.trust_remote_code, "allow_pickle": intent.allow_pickle}
        handle = self._models.resolve(intent.model, family=intent.family, **trust)
        deployment, function = self._specs(intent, handle, trust)
        application = self._rooms.serving.deploy(deployment, function)
        self._checked.add(application)
        before = self._row(intent.function)
        self._rooms.catalog.put_function(
            self._owner,
            intent.function,
            application=application,
            deployment=deployment.model_dump(mode="json"),
            function=function.model_dump(mode="json"),
            model=intent.model.table or intent.model.directory,
        )
        if before is not None:
            self._remove_unused(before.application)
        if self._rooms.cluster.private:
            self._rooms.notice(
                f"function {intent.function} ends with this process (its Ray is private); "
                "`byzer-ft start` runs one that keeps it"
            )
        return Result("deploy", message=f"function {intent.function} answers with {handle.name}", read=self.table)

    def remove(self, name: str) -> bool:
        """Forgets the function and removes its application when nothing else uses it. False: there is none."""
        row = self._row(name)
        if row is None:
            return False
        self._rooms.catalog.drop_function(self._owner, name)
        self._remove_unused(row.application)
        return True

    def exists(self, name: str) -> bool:
        return self._row(name) is not None

    def rows(self) -> list[FunctionRow]:
        return self._rooms.catalog.functions(self._owner)

    def table(self) -> pa.Table:
        from byzer_ft.session.show import functions_table

        return functions_table(self.rows())

    # --------------------------------------------------------------------------------------- the engine's `Models` door

    def functions(self) -> frozenset[str]:
        return frozenset(row.name for row in self.rows())

    def ask(self, function: str, arguments: pa.Array) -> Answers:
        """One answer for each argument, STRING for STRING and ARRAY<STRING> for ARRAY<STRING>; errors by position."""
        import pyarrow as pa

        from byzer_ft.engine import Answers
        from byzer_ft.serving.protocol import array_element

        row = self._standing(function)
        nested = pa.types.is_list(arguments.type) or pa.types.is_large_list(arguments.type)
        given = arguments.to_pylist()
        elements = [e for value in given for e in (value if nested else [value])]
        # A STRING is a prompt whatever it looks like: a data column cannot smuggle in a system message.
        spec = self._function_spec(row)
        answered = self._rooms.serving.ask(row.application, spec, elements, plain=not nested)
        self._say_what_was_cut(row.name, answered)
        replies = iter(answered)
        values: list[Any] = []
        errors: dict[int, str] = {}
        for i, value in enumerate(given):
            parts = [next(replies) for _ in (value if nested else [value])]
            failed = [p.error for p in parts if p.error is not None]
            if failed:
                errors[i] = failed[0]
            values.append(None if failed else [array_element(p) for p in parts] if nested else parts[0].text)
        return Answers(values=pa.array(values, type=arguments.type), errors=errors)

    def _say_what_was_cut(self, name: str, replies: list[Any]) -> None:
        cut = sum(1 for r in replies if (r.metadata or {}).get("finish_reason") == "length")
        if cut:
            self._rooms.notice(
                f"{name}: {cut:,} of {len(replies):,} answers were cut at the function's max_new_tokens; "
                'give the function more with max_new_tokens="…"'
            )

    # -------------------------------------------------------------------------------------------------------- plumbing

    @property
    def _owner(self) -> str:
        return self._rooms.settings.owner

    def _row(self, name: str) -> FunctionRow | None:
        return self._rooms.catalog.function(self._owner, name)

    def _specs(self, intent: Deploy, handle: ModelHandle, trust: dict[str, bool]) -> tuple[Any, Any]:
        """What serving is told: the base and its engine settings, and this function's adapter and defaults."""
        from byzer_ft.lake import root_hash
        from byzer_ft.serving.client import AdapterRef, DeploymentSpec, FunctionSpec

        base = self._models.base_of(handle, **trust)
        self._models.open(base.directory, family=intent.family, need_tokenizer=handle.base is None, ours=True, **trust)
        deployment = DeploymentSpec(
            owner=self._owner,
            base=base,
            family=intent.family,
            quantization=intent.quantization,
            replicas=intent.replicas,
            num_gpus=intent.resources.num_gpus,
            num_cpus=intent.resources.num_cpus,
            custom=intent.resources.custom,
            **trust,
        )
        adapter = None
        if handle.base is not None:
            directory = self._models.directory(handle)
            adapter = AdapterRef(
                directory=str(directory),
                uri=handle.uri,
                version=handle.version,
                root_hash=handle.root_hash
                or root_hash(directory, self._rooms.settings.cache_root, guard=self._rooms.guard_of(directory)),
            )
        return deployment, FunctionSpec(name=intent.function, adapter=adapter, defaults=intent.generation)

    def _function_spec(self, row: FunctionRow) -> Any:
        from byzer_ft.serving.client import FunctionSpec

        return FunctionSpec.model_validate(row.function)

    def _reconnect(self, intent: Deploy) -> Result:
        row = self._row(intent.function)
        if row is None:
            names = [r.name for r in self.rows()]
            raise NotFoundError(
                f"there is no deployed function {intent.function!r} to reconnect to",
                hint=did_you_mean(intent.function, names) or f"functions: {listing(names)}",
            )
        self._standing(intent.function)
        return Result("deploy", message=f"function {row.name} stands", read=self.table)

    def _standing(self, name: str) -> FunctionRow:
        """The function's row, its application running: one whose cluster has ended is deployed again."""
        from byzer_ft.serving.client import DeploymentSpec

        row = self._row(name)
        if row is None:
            raise NotFoundError(f"there is no function {name!r}")
        if row.application not in self._checked:
            if row.application not in self._rooms.serving.status():
                self._rooms.notice(f"function {row.name} is not running on this Ray: deploying it again")
                spec = DeploymentSpec.model_validate(row.deployment)
                try:
                    self._rooms.serving.deploy(spec, self._function_spec(row))
                except ModelError as error:
                    raise ConflictError(
                        f"function {row.name} cannot be deployed again: {error.message}", hint=error.hint
                    ) from None
            self._checked.add(row.application)
        return row

    def _remove_unused(self, application: str) -> None:
        if any(row.application == application for row in self._rooms.catalog.functions()):
            return
        self._checked.discard(application)
        if application in self._rooms.serving.status():
            self._rooms.serving.remove(application)

-- The other statement forms, and what is said when a piece of one is missing.

-- # insert, create, drop and refresh are text for the engine
insert into t select 1; CREATE table x (a int); drop table x; refresh table x;
-- > {"kind": "insert", "body": "insert into t select 1"}
-- > {"kind": "create", "body": "CREATE table x (a int)"}
-- > {"kind": "drop", "body": "drop table x"}
-- > {"kind": "refresh", "body": "refresh table x"}

-- # register, unregister, include, predict
register LLM.`/m` as f where a="b"; unregister LLM.`/m`; include lib.`github.com/x` where alias="x"; predict t as LLM.`/m` as u;
-- > {"kind": "register", "et": "LLM", "path": "/m", "function": "f", "options": {"a": "b"}}
-- > {"kind": "unregister", "format": "LLM", "path": "/m"}
-- > {"kind": "include", "format": "lib", "path": "github.com/x", "options": {"alias": "x"}}
-- > {"kind": "predict", "table": "t", "outputs": ["u"]}

-- # run into, and several results
run t into TableRepartition.`` where partitionNum=2 as a as b;
-- > {"kind": "run", "et": "TableRepartition", "options": {"partitionNum": "2"}, "outputs": ["a", "b"]}

-- # options of what is not executed yet are not judged
run command as LLM.`` where action="merge" and pretrainedModelType="lora/llama2" and modelNameOrPath="/m" and savePath="/o"; run t as LLM.`` where pretrainedModelType="sfft/llama2" and `sfft.int.max_length`="128" and deepspeedConfig='{}'; run command as LLM.`` where action="infer" and pretrainedModelType="saas/zhipu" and `saas.api_key`="k"; load jdbc.`db.t` where url="x" as t; load excel.`/a` where useHeader="true" as t;
-- > {"kind": "run"}
-- > {"kind": "run"}
-- > {"kind": "run"}
-- > {"kind": "load", "format": "jdbc"}
-- > {"kind": "load", "format": "excel"}

-- # values that hold a variable are not judged
run t as LLM.`` where `sft.int.lora_rank`="${rank}" and detached="${d}"; load csv.`/a` where header="${h}" as t; run t as LLM.`` where action="${a}" and anything="x";
-- > {"options": {"sft.int.lora_rank": "${rank}", "detached": "${d}"}}
-- > {"options": {"header": "${h}"}}
-- > {"options": {"action": "${a}", "anything": "x"}}

-- # the doubled back-quote
select 1 as `a``b` as `c``d`;
-- > {"table": "c`d"}

-- # a column's own name beside the table's
select count(*) n as t; select 1 as a, 2 b as t; select a from t union select 1 as t;
-- > {"body": "select count(*) n", "table": "t"}
-- > {"body": "select 1 as a, 2 b", "table": "t"}
-- > {"body": "select a from t union select 1", "table": "t"}

-- # unknown statement with a suggestion
tran command as LLM.`` where a="b";
-- > error 1:1 unknown statement `tran`
-- > hint did you mean `train`?

-- # a command without its mark
show tables;
-- > error 1:1 unknown statement `show`
-- > hint did you mean `!show`?

-- # a CTE
with a as (select 1) select * from a as t;
-- > error 1:1 unknown statement `with`
-- > hint put the query in brackets

-- # load without as
load json.`/a`;
-- > error 1:11 `as` and a table name is missing
-- > hint for example: load json.`/data/rows.jsonl` as rows;

-- # load without its table
load json.`/a` as;
-- > error 1:16 a table name is missing at the end of the statement

-- # load with a quoted path
load json."/a" as t;
-- > error 1:11 a path stands in back-quotes
-- > hint write: json.`/a`

-- # load with a naked path
load json./a/b as t;
-- > error 1:11 expected a path in back-quotes, found `/`

-- # load without a format
load `/a` as t;
-- > error 1:11 expected `.` and a path in back-quotes after `/a`

-- # run without a path
run command as LLM where a="b";
-- > error 1:20 expected `.` and a path in back-quotes after `LLM`

-- # two options without and
load csv.`/a` where header="true" sep="," as t;
-- > error 1:35 expected `and` before the next option

-- # and without an option
load csv.`/a` where header="true" and as t;
-- > error 1:39 expected an option, found the keyword `as`

-- # an option without =
load csv.`/a` where header "true" as t;
-- > error 1:28 expected `=` after the option `header`

-- # an option without a value
load csv.`/a` where header=;
-- > error 1:27 the value of `header` is missing

-- # the mode behind the table
save t overwrite as json.`/a`;
-- > error 1:8 `overwrite` stands before the table
-- > hint write: save overwrite t as …

-- # a mode misspelt; a table of such a name is no mode
save overwrit t as json.`/a`; save overwrit as json.`/a`;
-- > error 1:6 unknown save mode `overwrit`
-- > hint did you mean `overwrite`?

-- # a table that is named like a mode
save overwrit as json.`/a`; save append appen as json.`/a`;
-- > {"kind": "save", "table": "overwrit"}
-- > {"kind": "save", "mode": "append", "table": "appen"}

-- # a bracket without its end is what is wrong, not the name
select (((((1 as x as t;
select count(1 from t where [1;
select (1) as x as t;
-- > error 1:12 `(` is never closed (5 are open)
-- > error 2:29 `[` is never closed (2 are open)

-- # a missing semicolon
load json.`/a` as t
select 1 as a as b;
-- > error 2:1 expected `;` after `t`, found `select`
-- > hint is a `;` missing after `t`?

-- # a missing semicolon behind a command
!byzerllm setup sft
run command as LLM.`` where a="b";
-- > error 2:1 the `!byzerllm` line runs into `run`
-- > hint is a `;` missing after `sft`?

-- # a query that is not quoted
set n = select 1;
-- > error 1:9 the query is not quoted

-- # a set that is cut off
set n =;
-- > error 1:7 a value is missing at the end of the statement

-- # a command without a name
! ;
-- > error 1:1 a command name is missing after `!`

-- # a full-width semicolon
select a from t as u；
-- > error 1:21 `；` means nothing here
-- > hint `；` is a full-width character: write `;`

-- # full-width quotes
select “a” as a as t;
-- > error 1:8 `“` means nothing here
-- > hint write `"`

-- # select selects nothing
select; select as t;
-- > error 1:1 `select` selects nothing
-- > error 1:9 `select` selects nothing

-- # an empty table name
load json.`/a` as ``;
-- > error 1:19 a table name is empty

-- # unterminated strings point at their start
select 1 as a as t;
load csv.`/a` where sep=", as t;
select 2 as b as u;
-- > error 2:25 unterminated string

-- # an unterminated block string
set a='''
select 1 as a as t;
-- > error 1:7 unterminated string
-- > hint close it with '''

-- # an unterminated back-quote
load json.`/a as t;
-- > error 1:11 unterminated back-quoted name

-- # an unterminated comment
select 1 as a as t; /* comment
-- > error 1:21 unterminated comment

-- # an odd quote turns later strings inside out: the first suspect is named
load csv.`/a` where header="true as t;
select "x" as b as c;
-- > error 2:10 unterminated string
-- > hint or look at line 1

-- # every error is found
foo;
load json.`/a`;
load csv.`/a` where sepp="," and header="maybe" as t;
select 1;
-- > error 1:1 unknown statement `foo`
-- > error 2:11 `as` and a table name is missing
-- > error 3:21 unknown option `sepp` of load
-- > error 3:41 option `header` must be `true` or `false`, not 'maybe'
-- > error 4:8 the select has no result table

-- Every row of the dialect's grammar table (G1-G28). `-- #` begins a case, `-- >` says what is expected of it:
-- JSON of one statement (the fields named here are compared) or `error LINE:COLUMN part of the message`.

-- # G1 where followed by and, comments between
run command as LLM.`` where
and localPathPrefix="/x"
-- 指定模型类型
and  pretrainedModelType="sft/llama2";
-- > {"kind": "run", "line": 1, "column": 1, "table": "command", "et": "LLM", "path": "", "outputs": [], "options": {"localPathPrefix": "/x", "pretrainedModelType": "sft/llama2"}}

-- # G2 empty where
load json.`/a` where as t;
-- > {"kind": "load", "format": "json", "path": "/a", "options": {}, "table": "t"}

-- # G3 no where
load json.`/a` header="true" as t;
-- > {"kind": "load", "options": {"header": "true"}, "table": "t"}

-- # G4 options is where
load json.`/a` options header="true" and inferSchema="false" as t;
-- > {"kind": "load", "options": {"header": "true", "inferSchema": "false"}, "table": "t"}

-- # G5 back-quoted and dotted keys
run t as LLM.`` where `sft.int.max_seq_length`="512" and sft.int.lora_rank="8";
-- > {"options": {"sft.int.max_seq_length": "512", "sft.int.lora_rank": "8"}}

-- # G5 dotted keys with numbers
train t as RandomForest.`/m` where fitParam.0.maxDepth="4" and fitParam.1.1="x";
-- > {"kind": "train", "options": {"fitParam.0.maxDepth": "4", "fitParam.1.1": "x"}}

-- # G6 unquoted numbers and booleans are an extension
load csv.`/a` where header=false and versionAsOf=5 as t;
-- > {"options": {"header": "false", "versionAsOf": "5"}}

-- # G6 other unquoted values are not
load csv.`/a` where sep=comma as t;
-- > error 1:25 the value of `sep` is not quoted

-- # G6 nor back-quoted ones
load csv.`/a` where sep=`b` as t;
-- > error 1:25 the value of `sep` is not quoted

-- # G7 forms of set
set a=1; set a=0.5; set spark.x.y=200; set a=`select 1`; set a="…"; set a='''…'''; set a=b.c;
-- > {"kind": "set", "name": "a", "value": "1"}
-- > {"name": "a", "value": "0.5"}
-- > {"name": "spark.x.y", "value": "200"}
-- > {"name": "a", "value": "select 1"}
-- > {"name": "a", "value": "…"}
-- > {"name": "a", "value": "…"}
-- > {"name": "a", "value": "b.c"}

-- # G8 a signed number is a number too
set a=-1; set a=-1e-4;
-- > {"value": "-1"}
-- > {"value": "-1e-4"}

-- # G9 three double quotes
set a="""x "y" ; z""";
-- > {"value": "x \"y\" ; z"}

-- # G10 empty block strings and such that begin with +
set a=''''''; set b='''+1'''; set c="""""";
-- > {"value": ""}
-- > {"value": "+1"}
-- > {"value": ""}

-- # G11 strings run over lines
set a="one
two"; set b='one
two';
-- > {"value": "one\ntwo"}
-- > {"value": "one\ntwo", "line": 2}

-- # G12 backslashes are kept
set a="x\"y\n\\";
-- > {"value": "x\\\"y\\n\\\\"}

-- # G13 a semicolon in a string or comment ends nothing
select ';' as a /* ; */ -- ;
, "`;" as `b;` as t;
-- > {"kind": "select", "table": "t"}

-- # G14 select without a result table
select 1;
-- > error 1:8 the select has no result table: `as name` is missing at its end

-- # G14 the only `as` names a column
select 1 as x;
-- > error 1:13 `as x` names the column here: the result table is missing

-- # G15 the last semicolon may be missing
load json.`/a` as t
-- > {"kind": "load", "table": "t"}

-- # G15 semicolons may be doubled
;;load json.`/a` as t;; ;select * from t as u;;
-- > {"kind": "load"}
-- > {"kind": "select", "body": "select * from t", "table": "u"}

-- # G16 save without a mode
save t as json.`/x`;
-- > {"kind": "save", "mode": null, "table": "t", "format": "json", "path": "/x", "partition_by": []}

-- # G17 the last mode wins
save overwrite append t as json.`/x`;
-- > {"mode": "append"}

-- # G18 errorIfExists, in any case
save errorIfExists t as json.`/x`; save ERRORIFEXISTS t as json.`/x`;
-- > {"mode": "errorIfExists"}
-- > {"mode": "ERRORIFEXISTS"}

-- # G19 partitionBy
save t as json.`/x` partitionBy x,y; save t as json.`/x` where fileNum="2" partitionby `列`; save t as json.`/x` partitionBy;
-- > {"partition_by": ["x", "y"]}
-- > {"partition_by": ["列"], "options": {"fileNum": "2"}}
-- > {"partition_by": []}

-- # G20 keywords in any case, names as written
SAVE OVERWRITE MyTable AS Json.`/X` WHERE header="True" PARTITIONBY Col;
-- > {"kind": "save", "mode": "OVERWRITE", "table": "MyTable", "format": "Json", "path": "/X", "partition_by": ["Col"]}

-- # G21 comments are hidden, hints are kept, # is no comment
select /*+ BROADCAST(b) */ a /**/ from b -- the end
/* more */ as t -- done
;
-- > {"body": "select /*+ BROADCAST(b) */ a /**/ from b", "table": "t"}

-- # G21 a hash is no comment
# load json.`/a` as t;
-- > error 1:1 unknown statement `#`

-- # G22 dotted paths without back-quotes are an extension
load delta.ai_model.llama2_300 as t;
-- > {"format": "delta", "path": "ai_model.llama2_300"}

-- # G23 a variable as table name
select 1 as a as `${hello}`; load json.`${dir}/x` as `${hello}`;
-- > {"table": "${hello}"}
-- > {"path": "${dir}/x", "table": "${hello}"}

-- # G24 Chinese names inside a select
select a as 列, b `名 称` from t as out;
-- > {"table": "out"}

-- # G24 a bare Chinese table name needs back-quotes
load json.`/a` as 表;
-- > error 1:19 a table name with such characters stands in back-quotes

-- # G24 a bare hyphen too
select 1 as a as my-table;
-- > error 1:18 `my-table` is no plain name

-- # G24 a bare hyphen after load too
load json.`/a` as my-table;
-- > error 1:19 a table name with `-` stands in back-quotes

-- # G24 in back-quotes they are fine
load json.`/a` as `我的-表`;
-- > {"table": "我的-表"}

-- # G25 where stands before as
run command as LLM.`` as t where action="infer";
-- > error 1:28 expected `;` after `t`, found `where`

-- # G26 an option that is a keyword needs back-quotes
connect jdbc where options="x" as db;
-- > error 1:20 expected an option, found the keyword `options`

-- # G26 in back-quotes it is fine
connect jdbc where `options`="x" and `set`="y" as db;
-- > {"kind": "connect", "format": "jdbc", "options": {"options": "x", "set": "y"}, "name": "db"}

-- # G27 raw words of a command
!fs -ls /tmp/*; !show a,b; !byzerllm setup num_gpus=4; !x /* comment */ a -- comment
 b; !fs -ls /*;
-- > {"kind": "macro", "name": "fs", "args": ["-ls", "/tmp/*"]}
-- > {"kind": "macro", "name": "show", "args": ["a,b"]}
-- > {"kind": "macro", "name": "byzerllm", "args": ["setup", "num_gpus=4"]}
-- > {"kind": "macro", "name": "x", "args": ["a", "b"]}
-- > {"kind": "macro", "name": "fs", "args": ["-ls", "/*"]}

-- # G27 quoted words of a command
!byzerllm setup "num_gpus=4"; !if ''' :n > 10 '''; !delta history `a.b`; !byzerllm setup num_gpus="4";
-- > {"args": ["setup", "num_gpus=4"]}
-- > {"args": [" :n > 10 "]}
-- > {"args": ["history", "a.b"]}
-- > {"args": ["setup", "num_gpus=4"]}

-- # G28 an unknown first word, with the place
load json.`/a` as t;
  foo bar;
-- > error 2:3 unknown statement `foo`

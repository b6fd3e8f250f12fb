-- What statements mean. `-- >` is an intent (the fields named here are compared) or an error of `check`.

-- # tables
load json.`/a` where inferSchema="true" as t; load CSV.`/a` where header="False" and delimiter="\t" as t; save overwrite t as delta.`db.t` partitionBy c;
-- > {"kind": "load", "format": "json", "path": "/a", "table": "t"}
-- > {"format": "csv", "options": {"header": false, "sep": "\\t"}}
-- > {"kind": "save", "mode": "overwrite", "table": "t", "format": "delta", "path": "db.t", "partition_by": ["c"]}

-- # modes of save
save t as json.`/a`; save errorIfExists t as json.`/a`; save IGNORE t as parquet.`/a`;
-- > {"mode": "errorifexists"}
-- > {"mode": "errorifexists"}
-- > {"mode": "ignore"}

-- # time travel concerns delta
load delta.`db.t` where versionAsOf="3" as t;
-- > {"options": {"version_as_of": 3}}

-- # time travel of something else
load json.`/a` where versionAsOf="3" as t;
-- > error 1:22 option `versionAsOf` concerns delta, not json

-- # unknown formats
load jsn.`/a` as t; save t as parqet.`/a`;
-- > error 1:6 unknown format `jsn`
-- > hint did you mean `json`?
-- > error 1:31 unknown format `parqet`
-- > hint did you mean `parquet`?

-- # documented and not executed yet
load excel.`/a` as t;
save t as jdbc.`/a`;
run t as TableRepartition.`` where partitionNum="2" as u;
register LLM.`x` as f;
insert into t values (1);
!delta show tables;
load delta.`a.b` where startingVersion="1" and endingVersion="2" as t;
!python env "A=b";
!show et;
-- > error 1:1 load excel is not supported yet
-- > error 2:1 save as jdbc is not supported yet
-- > error 3:1 run … as TableRepartition is not supported yet
-- > error 4:1 register is not supported yet
-- > error 5:1 insert is not supported yet
-- > error 6:1 !delta is not supported yet
-- > error 7:24 option `startingVersion` of load is not supported yet
-- > error 7:48 option `endingVersion` of load is not supported yet
-- > error 8:1 !python env is not supported yet
-- > error 9:1 !show et is not supported yet

-- # variables are filled in, and cannot leave their value
set a='x" and sep="y'; set t="out"; load csv.`/data/${a}` where sep="${a}" as `${t}`; select '${a}' as v, '#$ $x {y}' as w from `${t}` as u;
-- > {"kind": "set", "name": "a", "value": "x\" and sep=\"y"}
-- > {"kind": "set", "name": "t", "value": "out"}
-- > {"path": "/data/x\" and sep=\"y", "options": {"sep": "x\" and sep=\"y"}, "table": "out"}
-- > {"kind": "select", "body": "select 'x\" and sep=\"y' as v, '#$ $x {y}' as w from `out`", "table": "u"}

-- # a variable that only execution knows
set n=`select count(*) from t` where type="sql"; select ${n} as n as t; set m="${n}"; load json.`/a` where header="${m}" as t;
-- > {"kind": "set", "options": {"type": "sql"}}
-- > later
-- > later
-- > later

-- # an undefined variable, with what is defined
set city="Hangzhou"; select '${ctiy}' as c as t; load json.`/a/${x}` as t;
-- > error 1:30 variable `ctiy` is not defined
-- > hint did you mean `city`?
-- > error 1:64 variable `x` is not defined
-- > hint variables: city

-- # an error in a value that came from a variable underlines the statement's own value
set n="many"; save t as json.`/a` where fileNum="${n}";
-- > error 1:49 option `fileNum` must be a whole number from 1 to 10000, not 'many'

-- # one undefined variable is one error
set a="${b}"; select '${a}' as c as t;
-- > error 1:8 variable `b` is not defined

-- # a macro's body keeps what is not defined
set m='''load ${format}.`{0}` as t'''; select 1 as a as t;
-- > {"value": "load ${format}.`{0}` as t"}
-- > {"kind": "select"}

-- # but such a value cannot be used as text
set m='''hello ${nme}'''; select '${m}' as a as t;
-- > error 1:35 variable `m` still holds ${nme}

-- # defaultParam sets only what is not set
set a="1"; set a="2" where type="defaultParam"; set b="3" where type="defaultParam"; select ${a}${b} as c as t;
-- > {"value": "1"}
-- > {"value": "2"}
-- > {"value": "3"}
-- > {"body": "select 13 as c"}

-- # a shell is refused
set a="rm -rf /" where type="shell";
-- > error 1:24 `set … type="shell"` would run a command on this machine: it is refused

-- # reserved and impossible table names
load json.`/a` as command; set x="a
b"; select 1 as a as `${x}`;
-- > error 1:19 `command` stands for no table
-- > error 2:22 'a\nb' cannot name a table

-- # an empty path
load json.`` as t;
-- > error 1:11 the path is empty

-- # the guide's first script
!byzerllm setup sft;
!byzerllm setup "num_gpus=4";
run command as LLM.`` where
and localPathPrefix="/jobs"
-- 指定模型类型
and pretrainedModelType="sft/llama2"
and localModelDir="/models/Llama-2-7b-chat-hf"
and model="command"
and inputTable="sft_data"
and outputTable="llama2_300"
and  detached="true"
and `sft.int.max_seq_length`="512";
-- > {"kind": "setup", "mode": "sft"}
-- > {"kind": "setup", "key": "num_gpus", "value": "4"}
-- > {"kind": "finetune", "family": "llama2", "model": {"directory": "/models/Llama-2-7b-chat-hf", "table": null}, "input_table": "sft_data", "output_table": "llama2_300", "local_path_prefix": "/jobs", "detached": true, "resources": {"num_gpus": 4.0, "custom": {}}, "training": {"max_seq_length": 512, "lora_rank": 64}}

-- # the guide's second script
run command as LLM.`` where pretrainedModelType="sft/baichuan" and model="llama2_7b" and inputTable="sft_data" and outputTable="llama2_300" and detached="false";
-- > {"kind": "finetune", "family": "baichuan", "model": {"directory": null, "table": "llama2_7b"}, "detached": false, "resources": {"num_gpus": null}}

-- # the guide's third script
!byzerllm setup single; !byzerllm setup "resource.master=0.01"; !byzerllm setup "maxConcurrency=2";
run command as LLM.`` where action="infer" and localPathPrefix="/infer" and localModelDir="/final" and pretrainedModelType="custom/llama2" and udfName="llama2_chat" and modelTable="command";
-- > {"kind": "setup", "mode": "single"}
-- > {"kind": "setup", "key": "resource.master", "value": "0.01"}
-- > {"kind": "setup", "key": "maxConcurrency", "value": "2"}
-- > {"kind": "deploy", "function": "llama2_chat", "family": "llama2", "model": {"directory": "/final", "table": null}, "replicas": 2, "resources": {"custom": {"master": 0.01}}, "local_path_prefix": "/infer", "quantization": "none", "generation": {}}

-- # where wins over setup, setup sft forgets
!byzerllm setup num_gpus=4; !byzerllm setup resource.master=1; run t as LLM.`` where localModelDir="/m" and num_gpus=2 and `resource.master`=0 and `resource.gpu_box`="0.5" and num_cpus=3 and allowFewer="true"; !byzerllm setup sft; run t as LLM.`` where localModelDir="/m";
-- > {"key": "num_gpus"}
-- > {"key": "resource.master"}
-- > {"resources": {"num_gpus": 2.0, "num_cpus": 3.0, "custom": {"gpu_box": 0.5}, "allow_fewer": true}}
-- > {"mode": "sft"}
-- > {"resources": {"num_gpus": null, "custom": {}, "allow_fewer": false}}

-- # the 2024 names of setup keys
!byzerllm setup gpus_per_worker=1; !byzerllm setup "numWorkers=3"; run command as LLM.`` where action="infer" and modelTable="m" and udfName="f";
-- > {"key": "num_gpus"}
-- > {"key": "maxConcurrency"}
-- > {"kind": "deploy", "replicas": 3, "resources": {"num_gpus": 1.0}, "family": "auto", "model": {"table": "m"}}

-- # generation parameters
run command as LLM.`` where action="infer" and modelTable="m" and udfName="f" and max_new_tokens="64" and `generation.temperature`="0.7" and gen.top_p=0.9 and do_sample="false" and quatization="true" and stop='["a"]';
-- > {"generation": {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9, "do_sample": false, "stop": "[\"a\"]"}, "quantization": "4bit"}

-- # generation parameters out of range
run command as LLM.`` where action="infer" and modelTable="m" and udfName="f" and top_p=2 and temprature="1";
-- > error 1:89 option `top_p` must be a number above 0 and at most 1, not '2'
-- > error 1:95 unknown option `temprature` of run … as LLM (action="infer")
-- > hint did you mean `temperature`?

-- # config lies below sft keys
run t as LLM.`` where localModelDir="/m" and config='{"max_seq_length": 256, "seed": 1, "fp16": false, "a": {"b": 1}}';
-- > error 1:53 unknown hyper-parameter `a` in `config`

-- # config and sft keys together
run t as LLM.`` where localModelDir="/m" and config='{"max_seq_length": 256, "seed": 1}' and `sft.int.max_seq_length`="512" and learning_rate="1e-4";
-- > {"training": {"max_seq_length": 512, "seed": 1, "learning_rate": 0.0001}}

-- # unknown types
run t as LLM.`` where pretrainedModelType="s/baichuan" and localModelDir="/m";
run t as LLM.`` where pretrainedModelType="sft/lama2" and localModelDir="/m";
run t as LLM.`` where pretrainedModelType="llama2" and localModelDir="/m";
run t as LLM.`` where pretrainedModelType="custom/llama2" and localModelDir="/m";
run command as LLM.`` where action="infer" and pretrainedModelType="sft/llama2" and localModelDir="/m" and udfName="f";
run t as LLM.`` where pretrainedModelType="lora/llama2" and localModelDir="/m";
-- > error 1:43 unknown type s/baichuan
-- > hint did you mean `sft/baichuan`?
-- > error 2:43 unknown type sft/lama2
-- > hint did you mean `sft/llama2`?
-- > error 3:43 unknown type llama2
-- > hint did you mean `sft/llama2`?
-- > error 4:43 type custom/llama2 does not fit action="finetune"
-- > hint did you mean `sft/llama2`?
-- > error 5:68 type sft/llama2 does not fit action="infer"
-- > hint did you mean `custom/llama2`?
-- > error 6:43 type lora/llama2 does not fit action="finetune"
-- > hint `lora/…` belongs to action="merge"

-- # which model?
run t as LLM.`` where model="command";
run command as LLM.`` where action="infer" and udfName="f";
run t as LLM.`` where model="a" and modelTable="b";
run t as LLM.`` where localModelDir="";
-- > error 1:1 which model? Neither localModelDir nor model is given
-- > hint localModelDir="/path/of/the/model"
-- > error 2:1 which model? Neither localModelDir nor model is given
-- > error 3:23 modelTable='b' and model='a' contradict each other
-- > error 4:37 option `localModelDir` is empty

-- # which rows?
run command as LLM.`` where localModelDir="/m";
run command as LLM.`` where localModelDir="/m" and inputTable="command";
run a as LLM.`` where localModelDir="/m" and inputTable="b";
-- > error 1:1 inputTable is missing: a fine-tune needs rows
-- > error 2:63 inputTable='command': `command` is no table, a fine-tune needs rows
-- > error 3:57 inputTable='b' and `run a as LLM` contradict each other

-- # localModelDir wins over model
run t as LLM.`` where localModelDir="builtin:tiny-chat" and model="m" as helper;
-- > {"model": {"directory": "builtin:tiny-chat", "table": null}, "input_table": "t", "output_table": "helper"}

-- # contradictions
run t as LLM.`` where localModelDir="/m" and outputTable="a" as b;
run t as LLM.`` where localModelDir="/m" and fp16="true" and bf16="true";
run t as LLM.`` where localModelDir="/m" and num_gpus="0.5";
-- > error 1:65 a fine-tune has one result: outputTable and `as` contradict each other
-- > error 2:67 fp16 and bf16 contradict each other
-- > error 3:55 num_gpus=0.5: a fine-tune takes whole GPUs

-- # job names
run t as LLM.`` where localModelDir="/m" and name="sft-william-llama2-alpaca-data";
run t as LLM.`` where localModelDir="/m" and name="../x";
-- > error 2:51 name '../x' cannot name a job

-- # function names
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="explode";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="LLM_Param";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="a-b";
run command as LLM.`` where action="infer" and localModelDir="/m";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="select";
-- > error 1:79 udfName 'explode' is the name of a built-in function or a word of SQL
-- > error 2:79 udfName 'LLM_Param' is the name of a built-in function
-- > error 3:79 udfName 'a-b' cannot name a function
-- > error 4:1 udfName is missing: the name of the SQL function
-- > error 5:79 udfName 'select' is the name of a built-in function or a word of SQL

-- # reconnect
run command as LLM.`` where action="infer" and reconnect="true" and pretrainedModelType="saas/*" and udfName="qianwen_chat";
-- > {"kind": "deploy", "function": "qianwen_chat", "reconnect": true, "model": {"directory": null, "table": null}}

-- # other backends and kinds of models
!byzerllm setup "infer_backend=ray/vllm";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="f";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="f" and infer_backend="tgi";
run command as LLM.`` where action="infer" and localModelDir="/m" and udfName="f" and infer_backend="transformers" and longContextMode="true";
run command as LLM.`` where action="infer" and pretrainedModelType="custom/bge" and localModelDir="/m" and udfName="f" and infer_backend="transformers";
run t as LLM.`` where pretrainedModelType="sfft/llama2";
run t as LLM.`` where action="merge";
-- > error 2:1 infer_backend=ray/vllm is not supported yet
-- > error 3:101 infer_backend=tgi is not supported yet
-- > error 4:120 option `longContextMode` of run … as LLM is not supported yet
-- > error 5:68 models of type custom/bge are not supported yet
-- > error 6:1 run … as LLM with pretrainedModelType="sfft/llama2" is not supported yet
-- > error 7:1 run … as LLM with action="merge" is not supported yet

-- # accepted for compatibility, without effect
run t as LLM.`` where localModelDir="/m" and devices="0" and keepPartitionNum="true" and skipCopyPretrainedModel="true" and model_type="casual_lm" and modelWaitServerReadyTimeout="300" and dataWaitServerReadyTimeout="300"; !byzerllm setup "schema=file"; !python conf "schema=file"; !byzerllm setup "rayAddress=127.0.0.1:10001"; !byzerllm setup "runIn=executor"; !byzerllm setup "pythonExec=python";
-- > {"kind": "finetune"}
-- > {"key": "schema"}
-- > {"key": "schema"}
-- > {"key": "rayAddress"}
-- > {"key": "runIn"}
-- > {"key": "pythonExec"}

-- # another's name
!byzerllm setup "owner=you";
run t as LLM.`` where localModelDir="/m" and owner="you";
!byzerllm setup "owner=me";
-- > error 1:17 owner='you': this session belongs to 'me'
-- > error 2:52 owner='you': this session belongs to 'me'

-- # commands
!byzerllm model remove "llama2_chat"; !byzerllm model remove chat; !byzerllm model exists `chat`; !show tables; !show "jobs/get/abc"; !kill abc; !desc sft_data; !desc sft_data json; !byzerllm setup; !byzerllm setup "retrieval/data";
-- > {"kind": "model_admin", "action": "remove", "name": "llama2_chat"}
-- > {"kind": "model_admin", "action": "remove", "name": "chat"}
-- > {"kind": "model_admin", "action": "exists", "name": "chat"}
-- > {"kind": "show", "what": "tables", "args": []}
-- > {"kind": "show", "what": "jobs", "args": ["get", "abc"]}
-- > {"kind": "kill", "name": "abc"}
-- > {"kind": "describe", "table": "sft_data"}
-- > {"kind": "describe", "table": "sft_data"}
-- > {"kind": "setup", "mode": null, "key": null}
-- > {"kind": "setup", "mode": "retrieval"}

-- # unknown commands
!byzerlm setup x;
!shw tables;
!show tabels;
!byzerllm "num_gpus=0";
!byzerllm model remvoe x;
!kill;
!kill a b;
!byzerllm;
!byzerllm setup sfx;
!show;
-- > error 1:2 unknown command `!byzerlm`
-- > hint did you mean `!byzerllm`?
-- > error 2:2 unknown command `!shw`
-- > hint did you mean `!show`?
-- > error 3:7 unknown `!show tabels`
-- > hint did you mean `tables`?
-- > error 4:11 unknown `!byzerllm num_gpus=0`
-- > hint did you mean `!byzerllm setup "num_gpus=0"`?
-- > error 5:17 unknown `!byzerllm model remvoe`
-- > hint did you mean `remove`?
-- > error 6:1 `!kill` takes one name
-- > error 7:9 `!kill` takes one name
-- > error 8:1 `!byzerllm` says nothing to do
-- > error 9:17 unknown setup `sfx`
-- > hint did you mean `
-- > error 10:1 `!show` what?

-- # a user's macro
set greet='''select "{0}" as a as t'''; !greet "you"; !gret "you";
-- > error 1:41 !greet (a macro) is not supported yet
-- > error 1:56 unknown command `!gret`
-- > hint did you mean `!greet`?

-- # all that is wrong with a statement is said at once
run command as LLM.`` where pretrainedModelType="s/baichuan" and name="a b" and num_gpus="0.5";
-- > error 1:1 which model?
-- > error 1:1 inputTable is missing
-- > error 1:49 unknown type s/baichuan
-- > error 1:71 name 'a b' cannot name a job
-- > error 1:90 num_gpus=0.5: a fine-tune takes whole GPUs

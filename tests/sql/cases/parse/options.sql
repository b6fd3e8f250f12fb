-- Keys and values that parsing itself refuses.

-- # unknown options
load csv.`/a` where infer_shema="true" as t;
save t as json.`/x` where filenum="1";
set a="b" where tpye="sql";
-- > error 1:21 unknown option `infer_shema` of load
-- > hint did you mean `infer
-- > error 2:27 unknown option `filenum` of save
-- > hint did you mean `fileNum`?
-- > error 3:17 unknown option `tpye` of set
-- > hint did you mean `type`?

-- # snake_case is accepted
load csv.`/a` where infer_schema="true" and multi_line="false" as t; save t as json.`/x` where file_num="1"; run t as LLM.`` where local_model_dir="/m";
-- > {"options": {"infer_schema": "true", "multi_line": "false"}}
-- > {"options": {"file_num": "1"}}
-- > {"options": {"local_model_dir": "/m"}}

-- # values of another type or out of range
save t as json.`/x` where fileNum="0";
save t as json.`/x` where fileNum="many";
set a="b" where scope="world";
-- > error 1:35 option `fileNum` must be a whole number from 1 to 10000, not '0'
-- > error 2:35 option `fileNum` must be a whole number from 1 to 10000, not 'many'
-- > error 3:23 option `scope` must be one of `request`, `session`, not 'world'

-- # hyper-parameters of another type
run t as LLM.`` where `sft.int.lora_rank`="big";
-- > error 1:43 option `sft.int.lora_rank` must be a whole number from 1 to 4096, not 'big'

-- # hyper-parameters out of range
run t as LLM.`` where sft.int.lora_rank="0" and sft.float.learning_rate="nan" and sft.float.num_train_epochs="1e9" and sft.float.lora_dropout="1" and sft.float.lora_alpha="inf" and sft.bool.fp16="maybe" and sft.str.optim="adam";
-- > error 1:41 option `sft.int.lora_rank` must be a whole number from 1 to 4096, not '0'
-- > error 1:73 option `sft.float.learning_rate` must be a number above 0 and at most 10, not 'nan'
-- > error 1:110 option `sft.float.num_train_epochs` must be a number above 0 and at most 10000, not '1e9'
-- > error 1:143 option `sft.float.lora_dropout` must be a number at least 0 and below 1, not '1'
-- > error 1:172 option `sft.float.lora_alpha` must be a number above 0 and at most 65536, not 'inf'
-- > error 1:196 option `sft.bool.fp16` must be `true` or `false`, not 'maybe'
-- > error 1:222 option `sft.str.optim` must be one of

-- # the type word is checked against the real type
run t as LLM.`` where `sft.str.lora_rank`="8" and `sft.float.seed`="1" and `sft.bool.optim`="sgd";
-- > error 1:23 hyper-parameter `lora_rank` is an int, not a str
-- > hint write `sft.int.lora_rank`
-- > error 1:51 hyper-parameter `seed` is an int, not a float
-- > error 1:76 hyper-parameter `optim` is a str, not a bool

-- # a whole number is a number
run t as LLM.`` where `sft.int.lora_alpha`="32" and `sft.int.num_train_epochs`="3";
-- > {"kind": "run"}

-- # unknown hyper-parameters
run t as LLM.`` where `sft.int.max_seq_lenght`="512" and learning_rat="1" and sft.max_seq_length="1" and sft.long.seed="1";
-- > error 1:23 unknown hyper-parameter `max_seq_lenght`
-- > hint did you mean `sft.int.max_seq_length`?
-- > error 1:58 unknown option `learning_rat` of run … as LLM (action="finetune")
-- > hint did you mean `learning_rate`?
-- > error 1:79 `sft.max_seq_length` is not of the form sft.<type>.<name>
-- > hint write `sft.int.max_seq_length`
-- > error 1:106 `sft.long.seed` is not of the form sft.<type>.<name>

-- # an option of the other action
run t as LLM.`` where udfName="f";
run command as LLM.`` where action="infer" and `sft.int.seed`="1" and lora_rank="8";
-- > error 1:23 option `udfName` does not concern run … as LLM (action="finetune")
-- > hint it belongs to action="infer"
-- > error 2:48 option `sft.int.seed` does not concern run … as LLM (action="infer")
-- > error 2:71 option `lora_rank` does not concern run … as LLM (action="infer")

-- # the same option twice
load csv.`/a` where sep="," and delimiter=";" as t;
-- > error 1:33 option `delimiter` is given twice, with different values

-- # twice the same value does no harm
load csv.`/a` where sep="," and sep="," as t;
-- > {"kind": "load"}

-- # config
run t as LLM.`` where config='{"max_seq_length": 1e9, "lora_rnk": 8}';
run t as LLM.`` where config='{';
run t as LLM.`` where config='[]';
-- > error 1:30 option `config.max_seq_length` must be a whole number from 16 to 1048576
-- > error 1:30 unknown hyper-parameter `lora_rnk` in `config`
-- > hint did you mean `lora_rank`?
-- > error 2:30 option `config` is not JSON
-- > error 3:30 option `config` must be a JSON object

-- # setup keys
!byzerllm setup "maxCocurrency=1";
!byzerllm setup "num_gpus=many";
!python conf "resources.master=1";
!byzerllm setup "resource.master=x";
!byzerllm setup "resource.=1";
-- > error 1:17 unknown setup key `maxCocurrency`
-- > hint did you mean `maxConcurrency`?
-- > error 2:17 option `num_gpus` must be a number from 0 to 100000, not 'many'
-- > error 3:14 unknown setup key `resources.master`
-- > hint did you mean `resource.master`?
-- > error 4:17 option `resource.master` must be a number from 0 to 1000000, not 'x'
-- > error 5:17 `resource.` lacks a name

-- # setup keys in a statement
run t as LLM.`` where maxCocurrency="1" and num_gpus="-1" and resources.master="1" and `resource.a`="b";
-- > error 1:23 unknown option `maxCocurrency` of run … as LLM
-- > hint did you mean `maxConcurrency`?
-- > error 1:54 option `num_gpus` must be a number from 0 to 100000, not '-1'
-- > error 1:63 unknown option `resources.master` of run … as LLM
-- > hint did you mean `resource.master`?
-- > error 1:101 option `resource.a` must be a number from 0 to 1000000, not 'b'

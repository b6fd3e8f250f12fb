-- The main job in one script: rows -> SELECT -> QLoRA -> a Delta table -> a SQL function, on the built-in tiny model
-- and shipped data. It needs no GPU and no network, and takes about two minutes on two cores:
--
--     .venv/bin/byzer-ft run sql_examples/quickstart.sql

-- 1. Support tickets that somebody has already filed, and others that nobody trains on (new combinations of product,
--    issue and wording).
load json.`builtin:tickets.jsonl` as tickets;
load json.`builtin:tickets_heldout.jsonl` as heldout;

-- 2. Shape them: what the model is told and what it should answer.
select concat('Ticket: ', ticket) as instruction, '' as input,
       concat('product=', product, '; urgency=', urgency, '; team=', team) as output
from tickets as sft_data;

select id, ticket, concat('Ticket: ', ticket) as question,
       concat('product=', product, '; urgency=', urgency, '; team=', team) as expected
from heldout as questions;

-- 3. Ask the base model first, through a SQL function. It has never seen the format.
!byzerllm setup single;
run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto"
and localModelDir="builtin:tiny-chat" and udfName="base_chat" and max_new_tokens="40";
select id, ticket, expected, base_chat(question) as answer from questions as answers_before;

-- 4. Fine-tune with QLoRA in a named Ray actor. detached="false" waits and shows its progress.
!byzerllm setup sft;
!byzerllm setup "num_gpus=1";
run command as LLM.`` where pretrainedModelType="sft/auto" and localModelDir="builtin:tiny-chat"
and inputTable="sft_data" and outputTable="ticket_helper" and detached="false"
and `sft.int.num_train_epochs`="5"
and `sft.int.per_device_train_batch_size`="8"
and `sft.int.gradient_accumulation_steps`="1"
and `sft.float.learning_rate`="3e-3"
and `sft.int.lora_rank`="16"
and `sft.int.lora_alpha`="32"
and `sft.int.max_seq_length`="128";

-- 5. Keep it: an adapter, with the hash of its base, as one version of a Delta table.
save overwrite ticket_helper as delta.`ai_model.ticket_helper`;
load delta.`ai_model.ticket_helper` as stored_helper;

-- 6. Deploy what was stored and ask the same questions again.
!byzerllm setup single;
run command as LLM.`` where action="infer" and pretrainedModelType="custom/auto"
and modelTable="stored_helper" and udfName="ticket_chat" and max_new_tokens="40";
select id, ticket, expected, ticket_chat(question) as answer from questions as answers_after;

-- 7. The share of exact answers on tickets that were not trained on.
select 'before' as model, count(*) as tickets, round(100 * avg(if(answer = expected, 1, 0)), 1) as exact_match_percent,
       min_by(ticket, id) as example, min_by(answer, id) as answer
from answers_before
union all
select 'after', count(*), round(100 * avg(if(answer = expected, 1, 0)), 1), min_by(ticket, id), min_by(answer, id)
from answers_after
order by model desc as result;

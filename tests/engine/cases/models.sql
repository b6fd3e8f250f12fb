-- Queries that call models, over t(id, x, n, l) and u(id, y). `asked` is what the models saw, in order.
-- t: 1 a 1.5 [p] | 2 b 2.5 [q, null] | 3 a null [] | 4 null 4 null | 5 c 5 [null]     u: 1 k | 2 l | 2 m | 9 n

select up(x) as y from t
-- rows: [["A"], ["B"], ["A"], [null], ["C"]]
-- asked: [["up", ["a", "b", "c"]]]

select *, up(x) as y from t where id < 3
-- rows: [[1, "a", 1.5, ["p"], "A"], [2, "b", 2.5, ["q", null], "B"]]
-- asked: [["up", ["a", "b"]]]

select up('hi')
-- rows: [["HI"]]
-- asked: [["up", ["hi"]]]

select up(null) as a
-- rows: [[null]]
-- asked: []

select id, up(x) y from t where up(x) = 'A' and id > 1
-- rows: [[3, "A"]]
-- asked: [["up", ["b", "a", "c"]]]

select shout(x) s from t where up(x) = 'A'
-- rows: [["a!"], ["a!"]]
-- asked: [["up", ["a", "b", "c"]], ["shout", ["a"]]]

select id, up(x) as y from t order by y desc, id limit 2
-- rows: [[5, "C"], [2, "B"]]
-- asked: [["up", ["a", "b", "c"]]]

select id, up(x) as y from t order by id desc limit 2
-- rows: [[5, "C"], [4, null]]
-- asked: [["up", ["c"]]]

select id, up(x) as y from t limit 1
-- rows: [[1, "A"]]
-- asked: [["up", ["a"]]]

select id, up(x) as y from t order by 1 desc limit 2 offset 1
-- rows: [[4, null], [3, "A"]]
-- asked: [["up", ["a"]]]

select id, case when id < 3 then up(x) when id = 3 then shout(x) else 'z' end as y from t
-- rows: [[1, "A"], [2, "B"], [3, "a!"], [4, "z"], [5, "z"]]
-- asked: [["up", ["a", "b"]], ["shout", ["a"]]]

select if(id = 1, up(x), x) y from t
-- rows: [["A"], ["b"], ["a"], [null], ["c"]]
-- asked: [["up", ["a"]]]

select t.id, u.y, up(u.y) z from t join u on t.id = u.id order by t.id, u.y
-- rows: [[1, "k", "K"], [2, "l", "L"], [2, "m", "M"]]
-- asked: [["up", ["k", "l", "m"]]]

select y from (select up(x) as y from t) where y is not null
-- rows: [["A"], ["B"], ["A"], ["C"]]
-- asked: [["up", ["a", "b", "c"]]]

with c as (select id, up(x) as y from t) select y, count(*) n from c group by y order by y
-- rows: [[null, 1], ["A", 2], ["B", 1], ["C", 1]]
-- asked: [["up", ["a", "b", "c"]]]

with c as (select x from t where id < 3), d as (select up(x) y from c) select shout(y) s from d
-- rows: [["A!"], ["B!"]]
-- asked: [["up", ["a", "b"]], ["shout", ["A", "B"]]]

select up(x) y from t where id = 1 union all select shout(x) from t where id = 2 order by y
-- rows: [["A"], ["b!"]]
-- asked: [["up", ["a"]], ["shout", ["b"]]]

select up(shout(x)) y from t
-- rows: [["A!"], ["B!"], ["A!"], [null], ["C!"]]
-- asked: [["shout", ["a", "b", "c"]], ["up", ["a!", "b!", "c!"]]]

select up(x) a, up(x) b, shout(x) c from t where id = 2
-- rows: [["B", "B", "b!"]]
-- asked: [["up", ["b"]], ["shout", ["b"]]]

select count(up(x)) c, count(distinct up(x)) d from t
-- rows: [[4, 3]]
-- asked: [["up", ["a", "b", "c"]]]

select up(x) y, count(*) c from t group by up(x) order by y
-- rows: [[null, 1], ["A", 2], ["B", 1], ["C", 1]]
-- asked: [["up", ["a", "b", "c"]]]

select up(x) y, count(*) c from t group by y order by y
-- rows: [[null, 1], ["A", 2], ["B", 1], ["C", 1]]
-- asked: [["up", ["a", "b", "c"]]]

select up(max(x)) y from t
-- rows: [["C"]]
-- asked: [["up", ["c"]]]

select x, up(concat(x, '-', cast(count(*) as string))) y from t group by x order by x
-- rows: [[null, null], ["a", "A-2"], ["b", "B-1"], ["c", "C-1"]]
-- asked: [["up", ["a-2", "b-1", "c-1"]]]

select up(x) y, count(*) n from t group by x order by n desc, x limit 1
-- rows: [["A", 2]]
-- asked: [["up", ["a"]]]

select up(l) y from t
-- rows: [[["P"]], [["Q", null]], [[]], [null], [[null]]]
-- asked: [["up", [["p"], ["q"]]]]

select id, row_number() over (order by id) r, up(x) y from t limit 2
-- rows: [[1, 1, "A"], [2, 2, "B"]]
-- asked: [["up", ["a", "b", "c"]]]

select id, up(lag(x) over (order by id)) y from t order by id
-- rows: [[1, null], [2, "A"], [3, "B"], [4, "A"], [5, null]]
-- asked: [["up", ["a", "b"]]]

select count(*) over (partition by up(x)) c, id from t order by id
-- rows: [[2, 1], [1, 2], [2, 3], [1, 4], [1, 5]]
-- asked: [["up", ["a", "b", "c"]]]

select id from t where id in (select id from t where up(x) = 'A') order by id
-- rows: [[1], [3]]
-- asked: [["up", ["a", "b", "c"]]]

select (select max(up(x)) from t) m, id from t where id = 1
-- rows: [["C", 1]]
-- asked: [["up", ["a", "b", "c"]]]

select id, up(x) y from t a where exists (select 1 from u where u.id = a.id) order by id
-- rows: [[1, "A"], [2, "B"]]
-- asked: [["up", ["a", "b"]]]

select id, up(x) like 'A%' as b from t where up(x) is not null or id = 4
-- rows: [[1, true], [2, false], [3, true], [4, null], [5, false]]
-- asked: [["up", ["a", "b", "c"]]]

select to_json(struct(*)) j, up(x) y from u join (select id k, x from t) on id = k where y = 'k'
-- rows: [["{\"id\":1,\"y\":\"k\",\"k\":1,\"x\":\"a\"}", "A"]]
-- asked: [["up", ["a"]]]

select up(llm_prompt('{0}-{1} {{', array(x, '{0}'))) y from t where id < 3
-- rows: [["A-{0} {{"], ["B-{0} {{"]]
-- asked: [["up", ["a-{0} {{", "b-{0} {{"]]]

select up(llm_param(map("a", x))) as q from t where id = 1
-- rows: [[["{\"A\":\"A\"}"]]]
-- asked: [["up", [["{\"a\":\"a\"}"]]]]

select llm_response_predict(array('[{"predict":"p","input":{"instruction":"i"}}]')) a, llm_result(array('{"output":"o"}')) b, llm_response_full(array('[{"predict":"p","input":{"instruction":"i"}}]')) c, llm_response_predict(null) d
-- rows: [["p", "o", "ip", null]]
-- asked: []

select llm_stack(array('[{"predict":"p"}]'), llm_param(map("instruction", 'next'))) s
-- rows: [[["{\"stack\":[\"[{\\\"predict\\\":\\\"p\\\"}]\",\"{\\\"instruction\\\":\\\"next\\\"}\"]}"]]]
-- asked: []

select up(n) y from t
-- error: ScriptError: up takes a STRING or an ARRAY<STRING>; n is DOUBLE

select up(id, x) y from t
-- error: ScriptError: takes one argument

select up(nope) y from t
-- error: NotFoundError: column `nope` does not exist

select upp(x) y from t
-- error: NotFoundError: function `upp` does not exist

select t.id from t join u on up(t.x) = u.y
-- error: NotSupportedError: in a join condition

select transform(l, e -> up(e)) y from t
-- error: NotSupportedError: inside a lambda

select e from t lateral view explode(split(up(x), ',')) q as e
-- error: NotSupportedError: in a lateral view

select id, (select up(u.y) from u where u.id = t.id) y from t
-- error: NotSupportedError: reads `t.id` of an outer query

select x, count(*) c from t group by x having up(x) = 'A'
-- error: NotSupportedError: in having

select up(x) over (order by id) y from t
-- error: NotSupportedError: OVER (ORDER BY id)

select llm_split('a', array(','), 1) s
-- error: NotSupportedError: llm_split is not supported yet

select broken(x) y from t
-- error: EngineError: broken failed for all 4 rows: out of order

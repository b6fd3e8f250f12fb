"""Whether a name already means something in SQL, so that no model function takes it.

The engine's own functions as sqlglot's Spark dialect lists them, those it does not list, SQL's words and `llm_*`.
"""

from __future__ import annotations

import functools

_LLM = "llm_param llm_stack llm_prompt llm_split llm_result llm_response_predict llm_response_full"
# Spark functions that sqlglot reads as anonymous ones. Those that it knows, of other engines too, are refused because
# a call of them is no longer seen as a call of a model.
_SPARK = """
    aes_decrypt aes_encrypt array_insert assert_true bit_count bit_get bround btrim cardinality char char_length
    character_length charindex chr conv count_min_sketch crc32 csc current_catalog current_database current_schema
    current_user date_from_unix_date date_part dayname decode e elt encode equal_null every exists explode
    explode_outer filter find_in_set flatten forall format_number format_string from_csv from_json get getbit
    get_json_object hash hypot ifnull inline inline_outer input_file_name instr is_valid_utf8 isnotnull java_method
    json_array_length json_object_keys json_tuple kurtosis lcase locate luhn_check make_date make_interval
    make_timestamp map map_entries map_filter map_from_arrays map_from_entries map_zip_with mask md5 mode
    monotonically_increasing_id named_struct nanvl negative nullif nullifzero nvl nvl2 octet_length overlay
    parse_url percentile percentile_approx pi pmod posexplode posexplode_outer position positive printf quarter
    raise_error rand randn random randstr reflect regexp_count regexp_extract regexp_extract_all regexp_instr
    regexp_replace regexp_substr replace rint schema_of_csv schema_of_json sec sentences sequence session_user
    session_window shiftleft shiftright shuffle size skewness slice soundex space spark_partition_id split
    split_part stack str_to_map struct substr substring_index to_binary to_char to_csv to_date to_json to_number
    to_timestamp transform transform_keys transform_values translate trunc try_add try_avg try_divide
    try_element_at try_multiply try_subtract try_sum try_to_binary try_to_number typeof ucase unbase64 unhex uniform
    unix_date unix_micros unix_millis unix_seconds unix_timestamp upper url_decode url_encode user uuid version
    weekday weekofyear width_bucket window window_time xpath xxhash64 zeroifnull zip_with
"""
_WORDS = """
    all and anti any array as asc between bigint binary boolean both by case cast column create cross current_date
    current_timestamp date decimal delete desc describe distinct double drop else end except exists explain extract
    false fetch filter float for from full function grant group having in inner insert int intersect interval into is
    join lateral leading left like limit map natural not null of offset on only or order outer over partition rlike
    right row rows select semi set smallint some string struct table then timestamp tinyint to trailing true union
    unique unknown update using values when where window with
"""


def is_builtin(name: str) -> bool:
    return name.lower() in _names()


@functools.cache
def _names() -> frozenset[str]:
    from sqlglot.dialects.dialect import Dialect

    listed = Dialect.get_or_raise("spark").parser_class.FUNCTIONS
    return frozenset(n.lower() for n in listed) | set(f"{_LLM} {_SPARK} {_WORDS}".split())

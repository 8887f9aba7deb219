"""The names that the SQL of guests and schema changes may use: which of libsql's functions and virtual tables are
allowed, and which names belong to SQLite or the runtime. Pure.

libsql has functions and virtual tables that reach outside the database (readfile, writefile, fsdir, load_extension,
sqlite_dbpage) or run SQL that EXPLAIN doesn't show (sha3_query). So everything allowed is listed here by name, and
everything else is refused.
"""

from typing import Final

_FUNCTION_NAMES: Final = """
    -> ->> abs acos acosh asin asinh atan atan2 atanh atn2 avg bm25 ceil ceiling changes char charindex coalesce
    concat concat_ws cos cosh cot coth count cume_dist current_date current_time current_timestamp date datetime
    degrees dense_rank difference exp first_value floor format geopoly_area geopoly_bbox geopoly_blob geopoly_ccw
    geopoly_contains_point geopoly_group_bbox geopoly_json geopoly_overlap geopoly_regular geopoly_svg
    geopoly_within geopoly_xform glob group_concat hex highlight if ifnull iif instr json json_array
    json_array_length json_error_position json_extract json_group_array json_group_object json_insert json_object
    json_patch json_quote json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_extract
    jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set
    julianday lag last_insert_rowid last_value lead leftstr length like likelihood likely ln log log10 log2 lower
    lower_quartile ltrim match matchinfo max median min mod mode nth_value ntile nullif octet_length offsets
    percent_rank pi pow power printf proper quote radians random randomblob rank regexp regexpi replace reverse
    rightstr round row_number rtrim sha3 sign sin sinh snippet soundex sqlite_version sqrt square stdev strfilter
    strftime string_agg substr substring sum tan tanh time timediff total total_changes trim trunc typeof unhex
    unicode unixepoch unlikely upper upper_quartile uuid uuid_blob uuid_str variance zeroblob
"""
FUNCTIONS: Final = frozenset(_FUNCTION_NAMES.split())
"""The SQL functions that a statement may call. Some of libsql 0.0.55's functions are left out because they corrupt or
leak this process's memory: replicate, padl, padr and padc write past what they allocate for 4 GiB; the vector functions
return memory of the process for a malformed BLOB; vector_top_k frees what it never allocated."""
_MODULE_NAMES: Final = """
    json_each json_tree generate_series fts3 fts4 fts4aux fts5 fts5vocab rtree rtree_i32 geopoly
    pragma_table_info pragma_table_xinfo pragma_table_list pragma_index_list pragma_index_info pragma_index_xinfo
    pragma_foreign_key_list
"""
MODULES: Final = frozenset(_MODULE_NAMES.split())
"""The allowed virtual table modules: those that exist without a definition, and those that a schema change may create
tables with."""

INTERNAL: Final = ("sqlite_", "libsql_")
"""Prefixes of the names of SQLite's and libsql's own tables."""
RUNTIME_PREFIX: Final = "_skerry_"
"""Prefix of the names of the runtime's own tables."""

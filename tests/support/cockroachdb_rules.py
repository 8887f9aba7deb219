"""What CockroachDB does with a statement that PostgreSQL does something else with, as text in and text out.

`translate` has PostgreSQL run what CockroachDB alone knows (row TTL, hash-sharded indexes, zones), and refuses what
CockroachDB refuses. What PostgreSQL has no place for is kept as a comment on the table, in CockroachDB's words, and
shown by CockroachDB's own SHOW statements.
"""

import functools
import re
from dataclasses import dataclass

VERSION = "CockroachDB CCL v25.2.5 (x86_64-pc-linux-gnu, built 2025/08/12 00:00:00, go1.23.7 X:nocoverageredesign)"
"""What SELECT version() and the parameter crdb_version say."""
SERVER_VERSION = "13.0.0"
"""The version of PostgreSQL that CockroachDB says it is."""

VARIABLES = frozenset(
    {
        "autocommit_before_ddl",
        "default_int_size",
        "default_transaction_use_follower_reads",
        "enable_multiple_modifications_of_table",
        "kv_transaction_buffered_writes_enabled",
        "multiple_active_portals_enabled",
        "serial_normalization",
        "transaction_rows_read_err",
        "transaction_rows_written_err",
    }
)
"""Some session variables that PostgreSQL lacks."""

UNKNOWN_VARIABLES = frozenset(
    {"deadlock_timeout", "jit", "work_mem", "maintenance_work_mem", "effective_cache_size", "random_page_cost"}
    | {"shared_buffers", "wal_level", "full_page_writes", "temp_buffers", "enable_hashjoin", "enable_nestloop"}
)
"""Some of PostgreSQL's that CockroachDB lacks."""

_TTL_PARAMETERS = frozenset(
    {
        "ttl",
        "ttl_delete_batch_size",
        "ttl_delete_rate_limit",
        "ttl_disable_changefeed_replication",
        "ttl_expiration_expression",
        "ttl_expire_after",
        "ttl_job_cron",
        "ttl_label_metrics",
        "ttl_pause",
        "ttl_row_stats_poll_interval",
        "ttl_select_batch_size",
        "ttl_select_rate_limit",
    }
)
_ZONE_VARIABLES = frozenset(
    {"constraints", "gc.ttlseconds", "global_reads", "lease_preferences", "num_replicas", "num_voters"}
    | {"range_max_bytes", "range_min_bytes", "voter_constraints"}
)


@dataclass(frozen=True)
class Refused:
    """An error in a statement's place."""

    sqlstate: str
    message: str


def _refusals(sqlstate: str, message: str, *patterns: str) -> list[tuple[re.Pattern[str], Refused]]:
    return [(re.compile(pattern, re.IGNORECASE), Refused(sqlstate, message)) for pattern in patterns]


_REFUSED = [
    *_refusals(
        "0A000",
        "unimplemented: this syntax",
        r"^CREATE DATABASE\b.*\b(TEMPLATE|STRATEGY)\b",
        r"^(LISTEN|NOTIFY|MERGE|CLUSTER|LOCK)\b",
        r"\bGROUP BY (ROLLUP|CUBE|GROUPING SETS)\b",
        r"\bWITH TIES\b",
        r"^CREATE (LOCAL |GLOBAL )?TEMP(ORARY)? TABLE\b",
    ),
    *_refusals(
        "42601",
        "at or near: syntax error",
        r"^DROP DATABASE\b.*\bFORCE\b",
        r"^(ALTER SYSTEM|VACUUM|REINDEX DATABASE|LOAD|CHECKPOINT)\b",
        r"\bTABLESAMPLE\b",
        r"^EXPLAIN \([^)]*\b(FORMAT|BUFFERS|COSTS|SETTINGS|WAL|TIMING|SUMMARY)\b",
    ),
    *_refusals(
        "42883",
        "unknown function",
        r"\b(pg_terminate_backend|pg_reload_conf|pg_current_wal_lsn|pg_switch_wal|pg_stat_reset|pg_log_backend_\w+)\(",
        r"\b(pg_blocking_pids|pg_advisory_xact_lock_shared|txid_status|pg_export_snapshot)\(",
    ),
    *_refusals("42P01", "relation does not exist", r"\bpg_stat_(user_tables|all_tables|statements|database|io|wal)\b"),
    *_refusals("42703", "column does not exist", r"\b(ctid|xmin|xmax)\b"),
]

_INTERESTING = re.compile(
    r"version\(\)|\bttl|USING HASH|CONFIGURE ZONE|ALTER PRIMARY KEY|SHOW |^\s*(SET|RESET) |EXPLAIN|CREATE|DROP|"
    r"ALTER|pg_|LISTEN|NOTIFY|MERGE|CLUSTER|LOCK|ROLLUP|CUBE|GROUPING|TIES|TEMP|VACUUM|REINDEX|LOAD|CHECKPOINT|TABLESAMPLE|"
    r"txid|ctid|xmin|xmax",
    re.IGNORECASE,
)
_TABLE = r"(?:IF EXISTS )?(?P<table>[a-z_][a-z0-9_.]*)"
_SET_TTL = re.compile(rf"^ALTER TABLE {_TABLE} (?P<how>SET|RESET) \((?P<parameters>.*\bttl.*)\)$", re.IGNORECASE)
_ZONE = re.compile(rf"^ALTER TABLE {_TABLE} CONFIGURE ZONE USING (?P<settings>.*)$", re.IGNORECASE)
_PRIMARY_KEY = re.compile(
    rf"^ALTER TABLE {_TABLE} ALTER PRIMARY KEY USING COLUMNS \([a-z0-9_, ]+\)( USING HASH( WITH \(.*\))?)?$",
    re.IGNORECASE,
)
_HASH_INDEX = re.compile(
    r"^(?P<start>CREATE (UNIQUE )?INDEX (IF NOT EXISTS )?\S+ ON (?P<table>[a-z0-9_.]+) \([^)]*\)) USING HASH"
    r"(?P<buckets> WITH \(bucket_count ?= ?\d+\))?(?P<rest>.*)$",
    re.IGNORECASE,
)
_DROP_DATABASE = re.compile(r"^(?P<start>DROP DATABASE (IF EXISTS )?[a-z0-9_]+) CASCADE$", re.IGNORECASE)
_SHOW_ZONE = re.compile(r"^SHOW ZONE CONFIGURATION FROM TABLE (?P<table>[a-z0-9_.]+)$", re.IGNORECASE)
_SHOW_CREATE = re.compile(r"^SHOW CREATE TABLE (?P<table>[a-z0-9_.]+)$", re.IGNORECASE)
_VARIABLE = re.compile(
    r"^(?P<verb>SET|SHOW|RESET) (?P<scope>SESSION |LOCAL )?(?P<name>[a-z_]+)(?P<rest>( TO |\s*=).*)?$", re.IGNORECASE
)


@functools.lru_cache(maxsize=4096)
def translate(sql: str) -> str | Refused:
    """Return what PostgreSQL is to run in place of `sql`, or the error that CockroachDB has for it."""
    if not _INTERESTING.search(sql):
        return sql
    plain = " ".join(sql.split()).removesuffix(";").rstrip()
    words = re.sub(r"'(?:[^']|'')*'", "''", plain)
    for pattern, refused in _REFUSED:
        if pattern.search(words):
            return refused
    if "version()" in words.lower():
        return re.sub(r"\bversion\(\)", f"'{VERSION}'", plain, flags=re.IGNORECASE)
    for pattern, change in (
        (_SET_TTL, _set_ttl),
        (_ZONE, _zone),
        (_PRIMARY_KEY, lambda match: _keep(match["table"], match[0])),
        (_HASH_INDEX, _hash_index),
        # It ends the connections to the database, as CockroachDB drops it under them.
        (_DROP_DATABASE, lambda match: f"{match['start']} WITH (FORCE)"),
        (_SHOW_ZONE, _show_zone),
        (_SHOW_CREATE, _show_create),
        (_VARIABLE, _variable),
    ):
        match = pattern.match(plain)
        if match is not None:
            changed = change(match)
            return sql if changed is None else changed
    return sql


def _set_ttl(match: re.Match[str]) -> str | Refused:
    without_texts = re.sub(r"'(?:[^']|'')*'", "", match["parameters"])
    names = [part.partition("=")[0].strip().lower() for part in without_texts.split(",")]
    for name in names:
        if name not in _TTL_PARAMETERS:
            return Refused("22023", f'invalid storage parameter "{name}"')
    return _keep(match["table"], match[0])


def _zone(match: re.Match[str]) -> str | Refused:
    for setting in match["settings"].split(","):
        name, _, value = (part.strip() for part in setting.partition("="))
        if name not in _ZONE_VARIABLES or not value:
            return Refused("22023", f"unsupported zone config parameter: {name!r}")
    return _keep(match["table"], match[0])


def _hash_index(match: re.Match[str]) -> str:
    return f"{match['start']}{match['rest']}; {_keep(match['table'], match[0])}"


def _keep(table: str, statement: str) -> str:
    """A statement that adds `statement` to the table's comment; an error where there is no such table."""
    text = statement.replace("'", "''")
    return (
        f"DO $keep$ BEGIN EXECUTE format('COMMENT ON TABLE {table} IS %L', "
        f"concat(obj_description('{table}'::regclass), E'\\n', '{text}')); END $keep$"
    )


def _kept(table: str) -> str:
    return f"regexp_split_to_table(obj_description('{table}'::regclass), E'\\n') AS kept (line)"


def _show_zone(match: re.Match[str]) -> str:
    table = match["table"]
    return (
        f"SELECT 'TABLE {table}'::text AS target, string_agg(line, E'\\n') AS raw_config_sql "
        f"FROM {_kept(table)} WHERE line LIKE '%CONFIGURE ZONE%'"
    )


def _show_create(match: re.Match[str]) -> str:
    table = match["table"]
    return (
        f"SELECT '{table}'::text AS table_name, string_agg(line, E'\\n') AS create_statement "
        f"FROM {_kept(table)} WHERE line NOT LIKE '%CONFIGURE ZONE%'"
    )


def _variable(match: re.Match[str]) -> str | Refused | None:
    name = match["name"].lower()
    if name in UNKNOWN_VARIABLES:
        return Refused("42704", f'unrecognized configuration parameter "{name}"')
    if name not in VARIABLES:
        return None
    # PostgreSQL keeps any variable with a dot in its name.
    return f"{match['verb']} {match['scope'] or ''}cockroachdb.{name}{match['rest'] or ''}"

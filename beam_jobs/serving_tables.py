"""The rows of the serving tables: what is known of a user or an item at the end of all data."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.join import latest
from beam_jobs.plan import TABLE_KEY, Owner, Plan, raw
from recsys.raw import canonical
from recsys.spec.schema import OWNER_KEY


def serving_rows(
    rows: pa.Table | None,
    table: pa.Table | None,
    ends: list[pa.Table],
    owner: Owner,
    plan: Plan,
) -> pa.Table:
    """One row a key: `key:owner` and the owner's raw columns under their own names.

    Args:
        rows: The shard's joined impressions, if there are any.
        table: The shard of the owner's table, or None where the spec has no table; then the
            newest values among the impressions stand for it.
        ends: Histories as of the end of all data, each with `key` and its raw column.
        owner: Whose table it is.
        plan: The plan.
    """
    columns = plan.owned[owner]
    plain = [column for column in columns if not column.computed]
    if table is None:
        known = None if rows is None else latest(rows, owner, [c.name for c in plain])
    else:
        known = table
    keys = [] if known is None else [known[TABLE_KEY].combine_chunks()]
    for end in ends:
        found = end[TABLE_KEY].combine_chunks()
        if keys:
            found = found.filter(pc.invert(pc.is_in(found, pa.concat_arrays(keys))))
        keys.append(found)
    key = pa.concat_arrays(keys) if keys else pa.array([], pa.string())
    source = plan.tables.get(owner)
    own_keys = {getattr(plan.spec.data.keys, owner), source and source.fields[0].column}
    made: dict[str, pa.Array] = {OWNER_KEY: key}
    for column in columns:
        kind = pa.string() if column.dtype == "string" else pa.float32()
        holder = next(
            (t for t in [known, *ends] if t is not None and raw(column.name) in t.column_names),
            None,
        )
        if holder is None and column.name in own_keys:
            values, _ = canonical(key, column)
        elif holder is None:
            values = pa.nulls(len(key), kind)
        else:
            at = pc.index_in(key, value_set=holder[TABLE_KEY].combine_chunks())
            values = holder[raw(column.name)].combine_chunks().take(at)
        made[column.name] = pc.fill_null(values, pa.scalar(column.default, kind))
    return pa.table(made)

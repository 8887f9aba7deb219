-- grants: what an operator may, as a list of role, group (null: all) and functions (null: all); NULL: `role` for all
-- groups, as earlier versions made operators. `role` is the highest one for all groups, or `read`.
ALTER TABLE operators ADD COLUMN IF NOT EXISTS grants JSONB;

-- expires_at: when the operator's token ends, if it does.
ALTER TABLE operators ADD COLUMN IF NOT EXISTS expires_at TIMESTAMPTZ;

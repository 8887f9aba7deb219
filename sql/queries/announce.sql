-- Give changed rows (groups, nodes, credentials, operators) the next epoch, all in one statement.
-- name: announce
WITH taken AS (UPDATE epochs SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch),
    of_groups AS (
        UPDATE groups SET epoch = (SELECT epoch FROM taken) WHERE id = ANY($1::text[]::uuid[]) RETURNING id
    ),
    of_nodes AS (
        UPDATE nodes SET epoch = (SELECT epoch FROM taken) WHERE id = ANY($2::text[]::uuid[]) RETURNING id
    ),
    of_credentials AS (
        UPDATE credentials SET epoch = (SELECT epoch FROM taken) WHERE id = ANY($3::text[]::uuid[]) RETURNING id
    ),
    of_operators AS (
        UPDATE operators SET epoch = (SELECT epoch FROM taken) WHERE id = ANY($4::text[]::uuid[]) RETURNING id
    )
SELECT epoch FROM taken;

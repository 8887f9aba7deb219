-- Which release a rollback of a group goes to.

-- The release whose functions and floor a release has got, where it is a rollback.
-- name: went_back
SELECT rollback_to FROM releases WHERE group_id = $1 AND number = $2;

-- The newest release before a number that was the group's, that some node has run, and on which none has failed: not one
-- whose rollout was stopped. A node that failed and ran it
-- later doesn't count; failed_at stays when the lines of syncs are deleted.
-- name: target
SELECT r.number FROM releases AS r
WHERE r.group_id = $1 AND r.number < $2 AND r.reached_at IS NOT NULL
    AND (r.failed_at IS NULL OR r.arrived_at IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM rollouts AS o WHERE o.release_id = r.id AND o.state <> 'done')
    AND NOT EXISTS (
        SELECT 1 FROM syncs AS f
        WHERE f.release_id = r.id AND f.status IN ('failed', 'expired') AND coalesce(f.late_status, '') <> 'succeeded'
            AND NOT EXISTS (
                SELECT 1 FROM syncs AS s
                WHERE s.node_id = f.node_id AND s.release_id = f.release_id AND s.status = 'succeeded'
                    AND s.started_at > f.started_at
            )
    )
ORDER BY r.number DESC LIMIT 1;

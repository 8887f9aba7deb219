-- Logs end by themselves where the server can do it; elsewhere the monitor deletes them.

ALTER TABLE syncs SET (ttl_expiration_expression = '((started_at AT TIME ZONE ''UTC'') + INTERVAL ''90 days'') AT TIME ZONE ''UTC''', ttl_job_cron = '@daily');

ALTER TABLE auth_failures SET (ttl_expiration_expression = '((minute AT TIME ZONE ''UTC'') + INTERVAL ''90 days'') AT TIME ZONE ''UTC''', ttl_job_cron = '@daily');

ALTER TABLE audit SET (ttl_expiration_expression = '((at AT TIME ZONE ''UTC'') + INTERVAL ''400 days'') AT TIME ZONE ''UTC''', ttl_job_cron = '@daily');

ALTER TABLE idempotency SET (ttl_expiration_expression = '((created_at AT TIME ZONE ''UTC'') + INTERVAL ''1 day'') AT TIME ZONE ''UTC''', ttl_job_cron = '@hourly');

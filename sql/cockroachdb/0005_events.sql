-- Events are deleted soon after they are written; a scan reads what was deleted too, until it is gone.
ALTER TABLE events CONFIGURE ZONE USING gc.ttlseconds = 600;
